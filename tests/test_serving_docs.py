"""The pages on serving say what is so."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from classifier import cli
from classifier.bundle import read_bundle, write_bundle
from classifier.server import RELOADABLE
from classifier.settings import ServerSettings
from classifier.telemetry import Metrics
from classifier.testing import FakeEngine, fake_server

ROOT = Path(__file__).parent.parent
SERVING, CLIENT = (ROOT / "docs" / name for name in ("serving.md", "client.md"))


def settings_table() -> str:
    """The settings as the page has them: `python -m tests.test_serving_docs` writes them there."""
    rows = []
    for f in fields(ServerSettings):
        default = ", ".join(f.default) if isinstance(f.default, tuple) else f.default
        shown = (
            {True: "on", False: "off", "": ""}.get(default, default) if isinstance(default, (bool, str)) else default
        )
        rows.append(f"| `{f.name}` | {f'`{shown}`' if shown != '' else ''} | {f.metadata['help']} |")
    return "\n".join(["| setting | default | |", "|---|---|---|", *rows])


def test_the_page_has_every_setting_with_its_default_and_meaning():
    """The table of settings is the code's."""
    page = SERVING.read_text(encoding="utf-8")
    [table] = re.findall(r"<!-- settings -->\n(.*?)\n<!-- end -->", page, re.DOTALL)
    assert table == settings_table(), "run: python -m tests.test_serving_docs"


def test_the_page_names_what_sighup_changes():
    """The settings that a running server takes over are told apart from those that need a restart."""
    [told] = re.findall(r"What changes is\s(.*?); for the rest", SERVING.read_text(encoding="utf-8"), re.DOTALL)
    assert set(re.findall(r"`([a-z_]+)`", told)) == RELOADABLE


def test_the_page_has_every_metric():
    """Every metric family is explained, and none that is not there."""
    text = generate_latest(Metrics().registry).decode()
    exist = {name for name in re.findall(r"^# TYPE (\w+)", text, re.MULTILINE) if not name.endswith("_created")}
    told = set(re.findall(r"`(classifier_[a-z_]+)[`{]", SERVING.read_text(encoding="utf-8")))
    assert told == exist


@pytest.mark.parametrize(
    "block", re.findall(r"<!-- test: runs -->\n```python\n(.*?)```", CLIENT.read_text(encoding="utf-8"), re.DOTALL)
)
def test_the_python_of_the_page_runs(block, tmp_path):
    """Each block of Python on the clients' page runs as it stands, against a server."""
    default = FakeEngine().policies["default"]
    engine = FakeEngine(policies={"default": default, "balanced": replace(default, name="balanced")})
    with fake_server(engine=engine, feedback_url=f"sqlite:///{tmp_path}/feedback.db") as address:
        code = block.replace("127.0.0.1:50051", address)
        done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("signal_mask")
def test_starts_that_fail_say_what_the_page_quotes(tiny_bundle_path, tmp_path, monkeypatch, capsys):
    """What the page quotes of a start that fails is what such a start says, with the exit code that the page has."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLASSIFIER_STORE", "off")
    monkeypatch.setitem(sys.modules, "opentelemetry", None)  # as without the extra
    (tmp_path / "serve.toml").write_text("lissten = 'x'")
    made = read_bundle(tiny_bundle_path)
    write_bundle(tmp_path / "older", made.path, {**made.manifest, "input_version": 0})
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        starts = {
            "is in use": (["--listen", f"127.0.0.1:{taken.getsockname()[1]}"], 2),
            "can be reached by other machines": (["--listen", "0.0.0.0:0"], 2),
            "no bundle 'current' there": (["--listen", "127.0.0.1:0", "--registry", "reg"], 1),
            "no manifest.json there": (["--listen", "127.0.0.1:0", "--bundle", "./no"], 1),
            "made for input version": (["--listen", "127.0.0.1:0", "--bundle", "./older"], 1),
            "unknown key": (["--config", "serve.toml"], 2),
            "one key": (["--store", "hash", "--feedback-url", "postgresql+psycopg://c@db/c"], 2),
            "pip install": (["--listen", "127.0.0.1:0", "--traces"], 1),
        }
        for words, (arguments, code) in starts.items():
            with pytest.raises(SystemExit) as ended:
                cli.main(["serve", *arguments])
            told = capsys.readouterr().err.splitlines()[-1]
            assert (told.startswith("error: "), words in told, ended.value.code) == (True, True, code), told
    table = SERVING.read_text(encoding="utf-8").partition("| the line says |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `([^`…]+)` \|", table, re.MULTILINE) == list(starts)


def test_health_of_a_server_that_is_not_there_says_what_the_page_quotes(capsys):
    """The page has the command's own words for a server that does not listen yet."""
    [words] = re.findall(r"`classifier health` says `([^`]+)`", SERVING.read_text(encoding="utf-8"))
    with socket.socket() as nobody:  # bound, and not listening
        nobody.bind(("127.0.0.1", 0))
        with pytest.raises(SystemExit) as ended:
            cli.main(["health", f"127.0.0.1:{nobody.getsockname()[1]}"])
    assert (ended.value.code, words in capsys.readouterr().err) == (1, True)


def check_answered_and_falls_back(ask, unavailable):
    """`ask(address)` gives what a client prints: a server's decision, and without one its own tier and the reason."""
    with fake_server() as address:
        found = ask(address)
    assert (found["tier"], found["fallback"], len(found["decision_id"])) == ("TIER_STANDARD", "", 43)
    with socket.socket() as nobody:  # bound, and not listening
        nobody.bind(("127.0.0.1", 0))
        found = ask(f"127.0.0.1:{nobody.getsockname()[1]}")
    assert (found["tier"], found["fallback"]) == ("TIER_COMPLEX", unavailable)


def test_a_node_client_is_answered_and_falls_back():
    """The TypeScript example, with types made from the proto, gets a decision from a server, its own from nobody."""
    folder = ROOT / "docs" / "examples" / "node"
    if shutil.which("node") is None or not (folder / "build" / "client.js").is_file():
        if "CLASSIFIER_REQUIRE_NODE" in os.environ:
            pytest.fail("node or docs/examples/node/build is not there")
        pytest.skip("needs node and: cd docs/examples/node && npm ci && npm run build")

    def ask(address):
        command = ["node", "build/client.js", address, "hi", "60000"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, cwd=folder, check=True)
        return json.loads(done.stdout)

    check_answered_and_falls_back(ask, "UNAVAILABLE")


# Debian's gRPC for Go (1.33) brings a codec from before the generated code's API: this one takes its place.
CODEC = """package main

import (
	"google.golang.org/grpc/encoding"
	"google.golang.org/protobuf/proto"
)

type codec struct{}

func (codec) Marshal(v interface{}) ([]byte, error)   { return proto.Marshal(v.(proto.Message)) }
func (codec) Unmarshal(b []byte, v interface{}) error { return proto.Unmarshal(b, v.(proto.Message)) }
func (codec) Name() string                            { return "proto" }
func init()                                           { encoding.RegisterCodec(codec{}) }
"""


@pytest.mark.faults
def test_a_go_client_is_answered_and_falls_back(tmp_path):
    """The Go example, built with what the proto generates, gets a server's decision, and its own tier from nobody."""
    system = Path("/usr/share/gocode")
    if shutil.which("go") is None or not (system / "src/google.golang.org/grpc/cmd/protoc-gen-go-grpc").is_dir():
        pytest.skip("needs Debian's golang-go, golang-google-grpc-dev and golang-google-protobuf-dev")
    example, module = ROOT / "docs" / "examples" / "go", tmp_path / "src" / "classifier-example"
    env = {**os.environ, "GO111MODULE": "off", "GOPATH": f"{tmp_path}:{system}", "GOFLAGS": ""}
    env |= {"GOCACHE": str(tmp_path / "cache"), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    env["PROTOC"] = f"{sys.executable} -m grpc_tools.protoc"
    (module / "classifierv1").mkdir(parents=True)

    def run(*command):
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def ask(address):
        return json.loads(run(str(tmp_path / "example"), address, "hi", "60000"))

    for package in ("google.golang.org/protobuf/cmd/protoc-gen-go", "google.golang.org/grpc/cmd/protoc-gen-go-grpc"):
        run("go", "build", "-o", str(tmp_path / package.rpartition("/")[2]), package)
    run(str(example / "generate.sh"), str(module))
    shutil.copy(example / "main.go", module)
    (module / "codec.go").write_text(CODEC)
    run("go", "vet", "classifier-example")
    run("go", "build", "-o", str(tmp_path / "example"), "classifier-example")
    check_answered_and_falls_back(ask, "Unavailable")


if __name__ == "__main__":
    replaced = re.sub(
        r"(<!-- settings -->\n).*?(\n<!-- end -->)",
        lambda found: found[1] + settings_table() + found[2],
        SERVING.read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    SERVING.write_text(replaced, encoding="utf-8")
