"""The command: verbs, results, errors, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from classifier import cli
from classifier.errors import ClassifierError, ServerUnreachable
from classifier.settings import misspelt


def run(*arguments, stdin=""):
    """Runs the command as a process."""
    return subprocess.run(
        [sys.executable, "-m", "classifier", *arguments], input=stdin, capture_output=True, text=True, timeout=60
    )


def test_classify_prints_the_tier_and_its_probabilities(tiny_bundle_path):
    """A text needs no server: the tier comes first, then a line for each probability."""
    done = run("classify", "--bundle", str(tiny_bundle_path), "prove the theorem")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("frontier  (model; policy balanced")
    assert [line[2:].split()[0] for line in done.stdout.splitlines()[1:]] == [
        "simple",
        "standard",
        "complex",
        "frontier",
    ]


def test_classify_prints_json_for_machines_and_reads_stdin(tiny_bundle_path):
    """`--json -` reads the text from stdin and prints one object."""
    done = run("classify", "--bundle", str(tiny_bundle_path), "--json", "--floor", "standard", "-", stdin="hi")
    found = json.loads(done.stdout)
    assert (found["tier"], found["model_tier"], found["reason"]) == ("standard", "simple", "floor")
    assert sum(found["probabilities"]) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["classify"], 2, "Give either TEXT or --request FILE"),
        (["classify", "--floor", "huge", "x"], 2, "error: floor: unknown tier 'huge'"),
        (["classify", "--bundle", "/nowhere", "x"], 1, "error: /nowhere"),
        (["classify", "a\x01b", "--policy", "nope"], 2, "error: policy"),
        (["no-such-verb"], 2, "No such command"),
        (["serve", "--queue-size", "many"], 2, "error: --queue-size: expected a whole number"),
        (["serve", "--config", "/nowhere.toml"], 2, "error: /nowhere.toml"),
        (["health", "nonsense"], 2, "error: address: expected HOST:PORT"),
        (["health", b"unix:/\xff"], 2, "error: address: expected HOST:PORT or unix:/PATH, as UTF-8"),
        (["health", "--timeout", "-1"], 2, "'--timeout'"),
    ],
    ids=["usage", "tier", "no-bundle", "policy", "verb", "flag", "config", "address", "bytes", "timeout"],
)
def test_errors_are_one_line_on_stderr_with_an_exit_code(arguments, code, message, tiny_bundle_path):
    """What went wrong is on stderr without a traceback, and the exit code says of what kind it was."""
    if arguments[0] == "classify" and "--policy" in arguments:
        arguments = [*arguments, "--bundle", str(tiny_bundle_path)]
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's full device")
def test_a_full_disk_behind_stdout_is_one_line(tmp_path):
    """What stdout cannot take is said on stderr in one line, the same by both commands."""
    log = tmp_path / "log.jsonl"
    log.write_text('{"prompt": "hi"}')
    jury = ["jury", log, "-o", tmp_path / "o.jsonl", "--base-url", "http://127.0.0.1:9/v1", "--model", "m", "--dry-run"]
    told = "error: the output cannot be used (No space left on device); check the path, the space and the rights\n"
    for arguments in (["classifier", "--version"], ["training", *jury], ["training", "--help"]):
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run(
                [sys.executable, "-m", *map(str, arguments)],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=60,
                cwd=Path(__file__).parent.parent,
                env=os.environ | {"PYTHONUNBUFFERED": ""},
            )
        assert (done.returncode, done.stderr) == (1, told), arguments


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's full device")
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["classifier", "classify", "x", "--floor", "huge"], 2),
        (["classifier", "no-such-verb"], 2),
        (["training", "evaluate", "--no-robustness", "--gate", "accuracy=1"], 3),
    ],
    ids=["error", "usage", "gate"],
)
def test_a_stderr_that_takes_nothing_changes_no_exit_code(arguments, code, tiny_bundle_path, tmp_path):
    """Whoever waits for a command learns of what kind the failure was, also where nobody can be told why."""
    if arguments[0] == "training":
        (tmp_path / "rows.jsonl").write_text('{"id": "a", "prompt": "hi", "tier": "frontier"}\n')
        arguments = [*arguments, "--bundle", tiny_bundle_path, "--data", tmp_path / "rows.jsonl"]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=full,
            timeout=60,
            cwd=Path(__file__).parent.parent,
        )
    assert done.returncode == code


@pytest.mark.parametrize(
    ("closed", "arguments"),
    [("<&-", ["classify", "-"]), ("<&- >&- 2>&-", ["label", "log.jsonl", "-o", "out.parquet"])],
    ids=["stdin", "all"],
)
def test_a_stream_that_was_closed_is_an_empty_one(closed, arguments, tiny_bundle_path, tmp_path):
    """Without stdin there is nothing to read, without stdout and stderr nothing is said, and the work is done."""
    (tmp_path / "log.jsonl").write_text('{"prompt": "hi"}')
    done = subprocess.run(
        ["sh", "-c", f'"$0" -m classifier "$@" {closed}', sys.executable, *arguments, "--bundle", tiny_bundle_path],
        capture_output=True, text=True, timeout=60, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out.parquet").exists() == (arguments[0] == "label")


def test_a_text_is_utf_8_whatever_the_locale(tiny_bundle_path):
    """A prompt or a label given as an argument is what it would be from a file, also where the locale knows no é."""
    text, kept = "équation", os.environ | {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "classifier", "classify", "--explain", "--bundle", str(tiny_bundle_path)]
    for argument, stdin in ((text, b""), ("-", text.encode())):
        done = subprocess.run([*command, argument], input=stdin, capture_output=True, timeout=60, env=kept)
        assert f'"{text}"' in done.stdout.decode(), (argument, done.stderr)


def test_version_is_one_line_with_what_matters():
    """--version names the package, the bundle schema and the runtime."""
    done = run("--version")
    assert done.stdout.count("\n") == 1
    assert all(word in done.stdout for word in ("classifier 0.", "bundle schema", "onnxruntime"))


def test_every_verb_has_help_with_an_example():
    """Each verb's help shows how it is called."""
    context = cli.command.make_context("classifier", [], resilient_parsing=True)
    verbs = cli.command.list_commands(context)
    assert {"serve", "classify"} <= set(verbs)
    for verb in verbs:
        if cli.command.get_command(context, verb) is None:
            continue
        shown = CliRunner().invoke(cli.command, [verb, "--help"])
        assert shown.exit_code == 0
        assert f"classifier {verb}" in shown.output.replace("Usage: command", ""), verb


def test_examples_in_help_keep_their_lines():
    """Each example of each verb and of its parts stands on a line of its own, however long, to be copied."""

    def walk(path, command):
        shown = CliRunner().invoke(cli.command, [*path, "--help"]).output
        assert "\\b" not in shown, path
        lines = (command.help or "").splitlines()
        for line in [line.strip() for line in lines if line.startswith(("classifier ", "curl "))]:
            assert f"\n  {line}\n" in shown, (path, line)
        for name, inner in getattr(command, "commands", {}).items():
            walk([*path, name], inner)

    context = cli.command.make_context("classifier", [], resilient_parsing=True)
    for verb in cli.command.list_commands(context):
        if (command := cli.command.get_command(context, verb)) is not None:
            walk([verb], command)


def test_every_setting_is_a_flag_and_named_with_its_variable():
    """`serve --help` names every setting with its variable, but for secrets, which others could read in a flag."""
    from dataclasses import fields

    from classifier.settings import ServerSettings

    shown = "".join(CliRunner().invoke(cli.command, ["serve", "--help"], terminal_width=400).output.split())
    for f in fields(ServerSettings):
        assert ("--" + f.name.replace("_", "-") + ("TEXT" if f.name == "key" else "") in shown) != f.metadata["secret"]
        assert (f"[CLASSIFIER_{f.name.upper()}]" in shown) != f.metadata["secret"]


def test_a_variable_with_a_slip_is_named_by_every_command(monkeypatch):
    """Of each variable that a command reads, one letter less is told of; the variable itself is not, nor another's."""

    def variables(command):
        yield from (str(p.envvar) for p in command.params if str(p.envvar).startswith("CLASSIFIER_"))
        for inner in getattr(command, "commands", {}).values():
            yield from variables(inner)

    context = cli.command.make_context("classifier", [], resilient_parsing=True)
    verbs = [cli.command.get_command(context, verb) for verb in cli.command.list_commands(context)]
    read = {"CLASSIFIER_CONFIG", "CLASSIFIER_KEY", *(name for verb in verbs if verb for name in variables(verb))}
    assert {"CLASSIFIER_BUNDLE", "CLASSIFIER_SERVER_CA"} < read
    assert misspelt(dict.fromkeys([*read, "CLASSIFIER_SERVICE_HOST", "CLASSIFIER_PORT"], "x")) == {}
    slips = {name[:-2] + name[-1] for name in read}
    assert set(misspelt(dict.fromkeys(slips, "x"))) == slips
    monkeypatch.setenv("CLASSIFIER_CONFG", "x")
    shown = CliRunner().invoke(cli.command, ["health", "nonsense"]).stderr
    assert shown.startswith("warning: CLASSIFIER_CONFG is ignored, no command reads it; is CLASSIFIER_CONFIG meant?")


def test_help_imports_nothing_heavy():
    """`--help` loads neither numpy nor grpc nor onnxruntime."""
    code = (
        "import sys; from click.testing import CliRunner; from classifier import cli;"
        "assert CliRunner().invoke(cli.command, ['serve', '--help']).exit_code == 0;"
        "print([m for m in ('grpc', 'onnxruntime', 'tokenizers', 'numpy', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_numpys_blas_starts_no_threads():
    """A thread a core would spin beside a server that starts."""
    code = (
        "import os\nfrom classifier.cli import main\ntry: main(['--version'])\n"
        "except SystemExit: print(len(os.listdir('/proc/self/task')))"
    )
    environ = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, env=environ
    )
    assert done.stdout.splitlines()[1:] == ["1"]


def test_a_store_in_sqlite_imports_no_other_dialect(tmp_path):
    """What only PostgreSQL needs is not waited for beside SQLite."""
    code = (
        "import sys; from classifier.feedback import open_store;"
        f"open_store('sqlite:///{tmp_path}/f.db', key=bytes(32)).close();"
        "print([m for m in sys.modules if m.startswith('sqlalchemy.dialects.postgresql')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (ClassifierError("x"), 1)])
def test_an_interrupt_is_130(monkeypatch, error, code):
    """Ctrl-C ends with 130 and an error of ours with its own code."""

    def fail(**_):
        raise error

    monkeypatch.setattr(cli.command, "main", fail)
    with pytest.raises(SystemExit) as end:
        cli.main([])
    assert end.value.code == code


@pytest.mark.parametrize(
    ("error", "what"), [(MemoryError(), "little memory"), (RuntimeError("can't start new thread"), "few threads")]
)
def test_what_a_process_may_not_have_is_one_line(monkeypatch, capsys, error, what):
    """A container that allows too little memory or too few processes is told as that."""

    def fail(**_):
        raise error

    monkeypatch.setattr(cli.command, "main", fail)
    with pytest.raises(SystemExit) as end:
        cli.main([])
    assert end.value.code == 1
    assert capsys.readouterr().err.startswith(f"error: too {what} for this process")


def test_health_is_an_exit_code(tmp_path):
    """`classifier health` ends with 0 where a server serves, else with 1 and one line."""
    from classifier.testing import fake_server

    with fake_server(listen=(f"unix:{tmp_path}/c.sock",)) as address:
        done = run("health", "--timeout", "50", address)
        assert (done.returncode, done.stdout) == (0, "SERVING\n")
        asked = CliRunner().invoke(cli.command, ["health", "--timeout", "50", "--json", address])
        assert json.loads(asked.stdout) == {"address": address, "status": "SERVING"}
    done = run("health", "--timeout", "0.5", address)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {address}: no answer (")
    assert "the Unix socket of one with TLS" in done.stderr  # it speaks none, and such a server is not down
    asked = CliRunner().invoke(cli.command, ["health", "--timeout", "0.5", "--json", address])
    assert json.loads(asked.stdout) == {"address": address, "status": "UNREACHABLE"}
    assert isinstance(asked.exception, ServerUnreachable)


def test_health_asks_the_server_and_no_proxy(monkeypatch):
    """A proxy that the environment names for the web says nothing of whether this server serves."""
    from classifier.testing import fake_server

    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy", "grpc_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    with fake_server() as address:
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        done = run("health", "--timeout", "50", address)
    assert (done.returncode, done.stdout) == (0, "SERVING\n")
