"""The Dockerfile's steps, followed without Docker: what it copies, what it installs, and what it starts.

The long part installs into an empty environment from the package index, and so has a target of its own:
`make test-image`. It needs root, for namespaces of its own in which the root file system is read-only and the server is
not root.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from string import Template

import pytest

from classifier.settings import PREFIX, resolve

ROOT = Path(__file__).parent.parent
DOCKERFILES = sorted(path for path in (ROOT / "deploy").glob("Dockerfile*") if path.suffix != ".dockerignore")


def instructions(path: Path) -> list[tuple[str, str]]:
    """(word, rest) of every instruction, continued lines joined, comments left out."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def copied(path: Path) -> list[tuple[list[str], str]]:
    """(sources, target) of every COPY from the context."""
    found = [rest.split() for word, rest in instructions(path) if word == "COPY" and not rest.startswith("--from")]
    return [(parts[:-1], parts[-1]) for parts in found]


def environment(path: Path) -> dict[str, str]:
    """The last stage's variables."""
    pairs = [pair for word, rest in instructions(path) if word == "ENV" for pair in shlex.split(rest)]
    return dict(pair.split("=", 1) for pair in pairs)


def arguments(path: Path) -> dict[str, str]:
    """What --build-arg may change, as it is without."""
    return dict(rest.split("=", 1) for word, rest in instructions(path) if word == "ARG")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_an_image_copies_is_there_and_not_left_out(path):
    """Every source of a COPY exists, the build's context holds it, and nothing else."""
    kept = [line[1:] for line in Path(f"{path}.dockerignore").read_text().splitlines() if line.startswith("!")]
    sources = [source for names, _ in copied(path) for source in names]
    assert sources
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert [source for source in sources if not any(fnmatch(source, pattern) for pattern in kept)] == []
    assert set(kept) <= set(sources)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_the_extras_that_an_image_installs_exist(path):
    """Extras of the pip line are extras of the package, and what the package needs to be built is copied."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [extras] = re.findall(r'"\.\[(.+)\]"', path.read_text())
    extras = Template(extras).substitute(arguments(path))
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()
    sources = {source for names, _ in copied(path) for source in names}
    assert {"pyproject.toml", project["readme"], *project["license-files"]} <= sources


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_an_image_fetches_has_a_place_that_can_be_written(path):
    """Bundles of a remote registry are kept on a volume, as the root is read-only and the user has no home."""
    [volumes] = [rest for word, rest in instructions(path) if word == "VOLUME"]
    cache = Path(environment(path)["XDG_CACHE_HOME"])
    assert [folder for folder in re.findall(r"[^\s\[\]\",]+", volumes) if cache.is_relative_to(folder)]


def test_the_image_can_be_built_for_a_registry_on_s3():
    """The word that the Dockerfile and the page have for it adds the extra to those that are there without."""
    path = ROOT / "deploy" / "Dockerfile"
    wanted = f"EXTRAS={arguments(path)['EXTRAS']},s3"
    for page in (path, ROOT / "docs" / "serving.md"):
        assert wanted in page.read_text(encoding="utf-8")


def test_the_image_starts_with_one_more_word_and_refuses_without():
    """The image's variables are settings that resolve with --insecure; alone they are refused, as others reach it."""
    found = {k: v for k, v in environment(ROOT / "deploy" / "Dockerfile").items() if k.startswith(PREFIX)}
    assert resolve({"insecure": True}, found).listen == ("0.0.0.0:50051", "unix:/tmp/classifier.sock")
    with pytest.raises(Exception, match="--insecure"):
        resolve({}, found)


def test_the_image_takes_a_key_that_it_is_given():
    """CLASSIFIER_KEY is enough for replicas that share a PostgreSQL; the image names no file that contradicts it."""
    found = {k: v for k, v in environment(ROOT / "deploy" / "Dockerfile").items() if k.startswith(PREFIX)}
    shared = {**found, "CLASSIFIER_FEEDBACK_URL": "postgresql+psycopg://classifier@db/classifier"}
    assert resolve({"insecure": True}, {**shared, "CLASSIFIER_KEY": "ab" * 32}).key_file == ""
    with pytest.raises(Exception, match="need one key"):  # each would make its own
        resolve({"insecure": True}, shared)


# In namespaces of its own: a read-only root, /tmp and /var/lib/classifier that are not, no network but its own.
INSIDE = """
set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /var/lib
install -d -o 10001 /var/lib/classifier
mount -o remount,bind,ro /
ip link set lo up
as_user="setpriv --reuid 10001 --regid 10001 --clear-groups --bounding-set=-all env -i"
if $as_user $ENVIRONMENT sh -c 'touch /written' 2>/dev/null; then echo "the root is not read-only"; exit 1; fi
$as_user $ENVIRONMENT $ENTRYPOINT --insecure &
server=$!
for _ in $(seq 600); do $as_user $ENVIRONMENT $HEALTH 2>/dev/null && break; sleep 0.1; done
$as_user $ENVIRONMENT $HEALTH
$as_user $ENVIRONMENT classifier --version
$as_user $ENVIRONMENT python -c '
import urllib.request
from classifier import Client
for address in ("127.0.0.1:50051", "unix:/tmp/classifier.sock"):
    answer = Client(address, timeout_seconds=30).classify("What is the capital of Australia?")
    print("tier", answer.tier.label, answer.decision.bundle_version)
page = urllib.request.urlopen("http://127.0.0.1:9464/metrics").read().decode()
print([line for line in page.splitlines() if line.startswith("classifier_bundle_info{")])
import uvloop, psycopg, opentelemetry.sdk
'
ls /var/lib/classifier
kill -TERM $server
wait $server
echo ended with $?
"""


@pytest.mark.skipif("CLASSIFIER_TEST_IMAGE" not in os.environ or os.getuid() != 0, reason="make test-image, as root")
@pytest.mark.timeout(1200)
def test_what_the_dockerfile_installs_serves_as_it_says():
    """Its pip line makes an environment from the copied files alone; its entry point serves, is healthy and drains."""
    path = ROOT / "deploy" / "Dockerfile"
    python = next(p for p in ("/usr/bin/python3", sys.executable) if _can_make_environments(p))
    folder = Path(tempfile.mkdtemp(prefix="classifier-image-", dir="/var/tmp"))
    try:
        folder.chmod(0o755)
        context, venv = folder / "src", folder / "venv"
        for names, target in copied(path):
            for name in names:
                to = context / target if target == f"./{name}" else context / target / name
                copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
                to.parent.mkdir(parents=True, exist_ok=True)
                copy(ROOT / name, to)
        [run] = [rest for word, rest in instructions(path) if word == "RUN" and "pip install" in rest]
        steps = run.replace("python -m venv", f"{python} -m venv").replace("/venv", str(venv))
        subprocess.run(["sh", "-ec", steps], cwd=context, env={**os.environ, **arguments(path)}, check=True)
        shutil.rmtree(context)  # the last stage has the environment and nothing else
        shown = environment(path) | {"PATH": f"{venv}/bin:/usr/bin:/bin"}
        [entry] = [rest for word, rest in instructions(path) if word == "ENTRYPOINT"]
        [health] = [rest.split("CMD ", 1)[1] for word, rest in instructions(path) if word == "HEALTHCHECK"]
        told = {
            "ENVIRONMENT": " ".join(f"{name}={value}" for name, value in shown.items()),
            "ENTRYPOINT": " ".join(re.findall(r'"([^"]+)"', entry)),
            "HEALTH": " ".join(re.findall(r'"([^"]+)"', health)),
        }
        done = subprocess.run(
            ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "sh", "-c", INSIDE],
            env={**os.environ, **told}, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
    finally:
        shutil.rmtree(folder)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert said.count("tier simple") == 2, said
    assert "classifier_bundle_info{" in said
    assert "feedback.db" in said
    assert "ended with 0" in said


def _can_make_environments(python: str) -> bool:
    code = "import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))"
    return Path(python).exists() and subprocess.run([python, "-c", code], check=False).returncode == 0
