"""The deployment files are well formed and name settings, verbs and ports that exist."""

from __future__ import annotations

import itertools
import re
from dataclasses import fields
from pathlib import Path

import pytest

from classifier import cli
from classifier.recorder import CLOSE_SECONDS
from classifier.settings import PREFIX, ServerSettings, resolve

yaml = pytest.importorskip("yaml")
DEPLOY = Path(__file__).parent.parent / "deploy"
FILES = sorted(p for p in DEPLOY.rglob("*") if p.is_file())
SETTINGS = {PREFIX + f.name.upper() for f in fields(ServerSettings)}


def manifests():
    return [d for p in DEPLOY.rglob("kubernetes/**/*.yaml") for d in yaml.safe_load_all(p.read_text())]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_only_settings_that_exist_are_named(path):
    """Every CLASSIFIER_ variable of a deployment file is a setting."""
    assert set(re.findall(r"CLASSIFIER_[A-Z_]+", path.read_text())) <= SETTINGS


def test_only_verbs_that_exist_are_called():
    """Every verb of a probe, an entry point or a command is one of the command's."""
    verbs = set(cli.command.list_commands(cli.command.make_context("classifier", [], resilient_parsing=True)))
    text = "\n".join(p.read_text() for p in FILES)
    called = set(re.findall(r'classifier"?, "?([a-z-]+)', text))
    assert {"serve", "health"} <= called <= verbs


def test_the_settings_of_the_deployment_are_accepted():
    """The environment of the Kubernetes deployment resolves: TLS and tokens where others can reach it."""
    [deployment] = [m for m in manifests() if m["kind"] == "Deployment"]
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    cores = container["resources"]["requests"]["cpu"]
    given = {entry["name"]: entry.get("value", cores) for entry in container["env"]}
    found = resolve({}, given)
    assert (found.tls_cert, found.tokens) == ("/etc/classifier/tls/tls.crt", "/etc/classifier/secret/tokens")
    assert not found.insecure
    # A node has more cores than a pod asks for, and `cores` would be the node's.
    [told] = [entry["valueFrom"] for entry in container["env"] if "value" not in entry]
    assert (told, found.cores) == ({"resourceFieldRef": {"resource": "requests.cpu"}}, 2)
    assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > (
        found.shutdown_delay_seconds + found.drain_seconds + CLOSE_SECONDS
    )


def test_the_containers_are_not_root_and_cannot_write_their_root():
    """Kubernetes and Compose run the server without privileges on a read-only root file system."""
    [deployment] = [m for m in manifests() if m["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert compose["services"]["classifier"]["read_only"]
    assert re.search(r"^USER 10001$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)


def test_the_settings_of_compose_are_accepted():
    """What Compose tells the server resolves, the key that PostgreSQL asks for included."""
    server = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["classifier"]
    found = resolve({"insecure": server["command"] == ["--insecure"]}, server["environment"])
    assert found.key_file == "/var/lib/classifier/server.key"
    takes = found.shutdown_delay_seconds + found.drain_seconds + CLOSE_SECONDS
    assert int(server["stop_grace_period"].removesuffix("s")) > takes


def test_any_password_reaches_the_database():
    """Compose hands PostgreSQL's password over beside the URL, where an @ in it would be the end of it."""
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    for name in ("classifier", "migrate"):
        told = services[name]["environment"]
        assert "PASSWORD" not in told["CLASSIFIER_FEEDBACK_URL"]
        assert told["PGPASSWORD"] == services["postgres"]["environment"]["POSTGRES_PASSWORD"]


def test_the_training_image_takes_pytorch_for_processors():
    """PyPI's own build of torch brings gigabytes of CUDA; who builds the image may name another index."""
    before, _, _ = (DEPLOY / "Dockerfile.training").read_text().partition("RUN pip install")
    assert "\nARG PIP_EXTRA_INDEX_URL=\n" in before


def test_every_file_is_checked_by_lint_deploy():
    """No Dockerfile is left out, and no manifest but one of an operator's own kind, of which there is no schema."""
    [rule] = re.findall(r"^lint-deploy:.+?\n\n", (DEPLOY.parent / "Makefile").read_text(), re.MULTILINE | re.DOTALL)
    own = {p.name for p in DEPLOY.rglob("kubernetes/**/*.yaml") if "monitoring.coreos.com" not in p.read_text()}
    images = {p.name for p in DEPLOY.glob("Dockerfile*") if p.suffix != ".dockerignore"}
    assert images | own <= set(re.split(r"[\s/,)]+", rule))


def test_the_loops_work_is_kept_on_a_volume():
    """The default is a folder below the image's own, which root owns and which ends with the container."""
    image = (DEPLOY / "Dockerfile.training").read_text()
    [volumes] = re.findall(r"^VOLUME (.+)$", image, re.MULTILINE)
    [command] = re.findall(r"classifier-training loop (.+)$", image, re.MULTILINE)
    [job] = [m for m in manifests() if m["kind"] == "CronJob"]
    [container] = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    for words in (command.split(), container["args"]):
        work = words[words.index("--work") + 1]
        assert work in mounted
        assert f'"{work}"' in volumes


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("kubernetes/**/*.yaml")), ids=lambda path: path.name)
def test_a_manifest_begins_with_what_must_be_there_first(path):
    """Every secret and every claim of a volume that a manifest uses and does not make is named in its first lines."""
    text = path.read_text()
    head = "\n".join(itertools.takewhile(lambda line: line.startswith("#"), text.splitlines()))
    wanted = re.findall(
        r"(?:secretName|claimName): ([\w-]+)|secretKeyRef: {name: ([\w-]+)|secret: {secretName: ([\w-]+)", text
    )
    names = {name for found in wanted for name in found if name}
    assert [name for name in names if not re.search(rf"\b{name}\b", head)] == []


def test_selectors_and_ports_fit_together():
    """Service, budget, autoscaler and monitor select the deployment's pods by labels and ports that it has."""
    by_kind = {m["kind"]: m for m in manifests()}
    template = by_kind["Deployment"]["spec"]["template"]
    labels, [container] = template["metadata"]["labels"], template["spec"]["containers"]
    ports = {port["name"] for port in container["ports"]}
    assert by_kind["Service"]["spec"]["selector"] == labels
    for kind in ("PodDisruptionBudget", "PodMonitor"):
        assert by_kind[kind]["spec"]["selector"]["matchLabels"] == labels
    assert {port["targetPort"] for port in by_kind["Service"]["spec"]["ports"]} <= ports
    assert {e["port"] for e in by_kind["PodMonitor"]["spec"]["podMetricsEndpoints"]} <= ports
    target = by_kind["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert target["name"] == by_kind["Deployment"]["metadata"]["name"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in template["spec"]["volumes"]}
