"""What the package promises as a whole: light to import, few public names, documents that tell the truth."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import classifier
import training
from classifier.bundle import MANIFEST, SHIPPED

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "datasets", "sklearn", "onnxruntime", "grpc", "numpy", "sqlalchemy")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_brings_nothing_heavy():
    """`import classifier` loads neither models nor servers."""
    found = python(f"import sys, classifier; print([m for m in {HEAVY} if m in sys.modules])")
    assert found.strip() == "[]"


def test_runtime_never_needs_torch():
    """Every module of the runtime that serves imports where torch and its like are absent."""
    code = """
import importlib, pkgutil, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "datasets", "sklearn", "optimum", "training"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import classifier
for name in ("client", "engine", "server", "service", "feedback", "registry", "telemetry", "cli"):
    importlib.import_module(f"classifier.{name}")
print("ok")
"""
    assert python(code).strip() == "ok"


def test_the_lowest_versions_that_are_taken_are_those_tested():
    """`make test-lowest` has each library at the highest of the lower bounds that pyproject.toml gives it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    [extras] = re.findall(r"^EXTRAS := (.*)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    groups = [project["optional-dependencies"][extra] for extra in extras.split(",")]
    lowest: dict[str, Version] = {}
    for one in map(Requirement, sum(groups, [*project["dependencies"], "click>=8.2"])):  # the tests' own click
        [bound] = [Version(part.version) for part in one.specifier if part.operator == ">="]
        lowest[one.name] = max(bound, lowest.get(one.name, bound))
    # Training's transformers wants a newer tokenizers than the runtime does; torch is the one of constraints.txt.
    for elsewhere in ("tokenizers", "torch"):
        del lowest[elsewhere]
    lines = (ROOT / "tests/lowest.txt").read_text(encoding="utf-8").splitlines()
    tested = {name: Version(pin) for name, _, pin in (line.partition("==") for line in lines) if pin}
    assert {name: tested.get(name) for name in lowest} == lowest


def test_settings_alone_read_the_environment():
    """What the environment says comes through `settings` or a command's option; no module has a knob of its own."""
    modules = sorted((ROOT / "classifier").rglob("*.py"))
    readers = {m.name for m in modules if re.search(r"os\.environ(?!\[\S+\] =)|os\.getenv", m.read_text("utf-8"))}
    assert readers == {"settings.py"}


def test_public_names_are_few_and_work():
    """The public names are these, and each can be imported."""
    assert sorted(classifier.__all__) == [
        "AsyncClient", "Client", "Decision", "Engine", "Message", "Outcome", "Request", "Tier", "__version__",
    ]  # fmt: skip
    for name in classifier.__all__:
        assert getattr(classifier, name)


def test_the_version_is_looked_up_once(monkeypatch):
    """GetInfo tells it in every answer, and looking it up takes 13 times as long as all else in it."""
    version = classifier.__version__
    monkeypatch.setattr("importlib.metadata.version", None)
    assert classifier.__version__ == version


@pytest.mark.skipif(not (SHIPPED / MANIFEST).is_file(), reason="no bundle was shipped yet")
def test_readme_example_prints_what_it_says():
    """The README's Python runs and prints what the README shows."""
    code = re.search(r"<!-- test: runs -->\n```python\n(.*?)```", README, re.DOTALL)[1]
    output = re.search(r"<!-- test: output -->\n```text\n(.*?)```", README, re.DOTALL)[1]
    assert python(code) == output


@pytest.mark.training
@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_loop_demo_starts():
    """`make loop-demo` finds what it imports: `training` is not installed, so the target names its place."""
    pytest.importorskip("torch")
    pytest.importorskip("matplotlib")
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    venv = f"VENV={sys.prefix}"
    done = subprocess.run(
        ["make", "--old-file", f"{sys.prefix}/.dev", "loop-demo", venv, "ARGS=--help"],
        cwd=ROOT, env=kept, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert (done.returncode, "--checkpoint" in done.stdout) == (0, True), done.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_help_lists_every_target():
    """Each target that says what it is for is among those that `make help` shows, whatever its name is made of."""
    said = re.findall(r"^(\S+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    done = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert [line.split()[0] for line in done.stdout.splitlines()] == said
    assert len({re.match(r"\S+ +", line).end() for line in done.stdout.splitlines()}) == 1  # one below the other


def test_the_readme_says_which_extras_make_setup_leaves_out():
    """`make setup` installs every extra but those that the first page names."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    [installed] = re.findall(r"^EXTRAS := (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    [told] = re.findall(r"installs all but the extras (.+?) into", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert set(re.findall(r"`(\w+)`", told)) == set(extras) - set(installed.split(","))


PAGES = [ROOT / "README.md", *sorted((ROOT / "data").glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "node_modules" not in page.parts]  # what an example has installed is not ours


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_between_documents_hold(page):
    """Every relative link in the documents leads to a file."""
    text = page.read_text(encoding="utf-8")
    targets = [t for t in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in t]
    missing = [t for t in targets if not (page.parent / t).exists()]
    assert missing == []


@pytest.mark.skipif(not (SHIPPED / MANIFEST).is_file(), reason="no bundle was shipped yet")
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_the_shipped_bundle_of_a_page_is_the_one_that_ships(page):
    """What a page calls the shipped bundle has the version that is shipped; older ones are called so."""
    named = re.findall(r"shipped bundle \(`(\w{16})`", page.read_text(encoding="utf-8"))
    assert set(named) <= {json.loads((SHIPPED / MANIFEST).read_text())["version"]}


@pytest.mark.training
def test_the_help_of_training_waits_for_no_library():
    """`python -m training --help` loads none of the libraries that take seconds; a command loads what it needs."""
    slow = ("torch", "transformers", "sklearn", "scipy.stats", "pandas", "matplotlib")
    code = f"""
import runpy, sys
sys.argv = ["training", "--help"]
try:
    runpy.run_module("training", run_name="__main__")
finally:
    print([name for name in {slow} if name in sys.modules])
"""
    pytest.importorskip("scipy")
    assert python(code).splitlines()[-1] == "[]"


def test_the_map_of_training_names_every_module_once():
    """The first page of training/ has each of its modules, so that a reader finds where a thing is done."""
    listed = [name for line in training.__doc__.split("\n\n")[1].splitlines() for name in line[16:].split()]
    modules = {path.stem for path in (ROOT / "training").glob("*.py")} - {"__init__", "__main__"}
    assert sorted(listed) == sorted(modules)


@pytest.mark.parametrize(
    ("missing", "verb", "code"),
    [
        ("scipy", "calibrate --bundle . --data rows.jsonl --out new", 1),
        ("httpx", "jury rows.jsonl -o out.jsonl --base-url http://h/v1 --model m", 1),
        ("scipy", "--help", 0),
        ("sqlalchemy", "loop --help", 0),
    ],
)
def test_training_without_its_extra_is_one_line(missing, verb, code):
    """Where a part of the extra is not installed, a verb that needs it says what to install; help needs none of it."""
    run = f"import runpy, sys; sys.argv = {['training', *verb.split()]}; sys.modules[{missing!r}] = None; "
    run += "runpy.run_module('training', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert (done.returncode, len(done.stderr.splitlines())) == (code, code)
    assert (f"needs {missing}; run 'make setup'" in done.stderr) == bool(code)
