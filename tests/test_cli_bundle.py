"""`classifier bundle`: list, verify, promote, rollback, pull, gc."""

from __future__ import annotations

import json
import shutil

import pytest
from click.testing import CliRunner

from classifier import cli
from classifier.bundle import read_bundle, write_bundle
from classifier.registry import Registry
from classifier.reload import source_of
from classifier.testing import fake_server
from tests.tiny import tiny_bundle


@pytest.fixture(scope="session")
def bundles(tmp_path_factory):
    """Two bundles of different versions."""
    folder = tmp_path_factory.mktemp("bundles")
    return [tiny_bundle(folder / f"b{n}", scale=7.0 + n).path for n in range(2)]


@pytest.fixture
def registry(tmp_path):
    """The folder of a new registry."""
    return str(tmp_path / "registry")


def run(registry, *arguments):
    """Runs the command in this process."""
    return CliRunner().invoke(cli.command, ["bundle", *map(str, arguments), "--registry", registry])


def version(path):
    return read_bundle(path).version


def test_a_folder_is_added_and_promoted_and_rolled_back(registry, bundles):
    """Promotion is one command, and so is its end."""
    first, second = map(version, bundles)
    assert run(registry, "promote", bundles[0], "--why", "first").stdout == f"current is {first}, previous is none\n"
    assert run(registry, "promote", bundles[1]).stdout == f"current is {second}, previous is {first}\n"
    assert run(registry, "rollback", "--why", "worse").stdout == f"current is {first}, previous is {second}\n"
    lines = [json.loads(line) for line in run(registry, "list", "--history", "--json").stdout.splitlines()]
    assert [(e["action"], e["why"]) for e in lines] == [
        ("add", "first"),
        ("promote", "first"),
        ("add", ""),
        ("promote", ""),
        ("rollback", "worse"),
    ]


def test_a_bundle_that_this_package_does_not_serve_is_promoted_with_a_warning(registry, bundles, tmp_path):
    """Servers of the package that made it may watch the same registry; those of this one keep what they have."""
    made = read_bundle(bundles[0])
    manifest = {**made.manifest, "input_version": 0}
    older = write_bundle(tmp_path / "older", made.path, manifest, {"README.md": "# older\n"})
    first = run(registry, "promote", older.path)
    assert (first.exit_code, first.stdout) == (0, f"current is {older.version}, previous is none\n")
    assert "warning: " in first.stderr
    assert "input version 0" in first.stderr
    assert run(registry, "promote", bundles[0]).stderr == ""
    back = run(registry, "rollback", "--json")
    assert json.loads(back.stdout) == {"current": older.version, "previous": made.version}
    assert "input version 0" in back.stderr


def test_list_shows_versions_and_aliases(registry, bundles):
    """Each version is a line with its aliases, for people and for machines."""
    empty = run(registry, "list")
    assert (empty.stdout, "holds no bundle" in empty.stderr) == ("", True)
    run(registry, "promote", bundles[0])
    Registry(registry).add(bundles[1], candidate=True)
    lines = run(registry, "list").stdout.splitlines()
    assert {(line.split()[0], line.split()[2]) for line in lines} == {
        (version(bundles[0]), "current"),
        (version(bundles[1]), "candidate"),
    }
    found = [json.loads(line) for line in run(registry, "list", "--json").stdout.splitlines()]
    assert {f["version"]: f["aliases"] for f in found}[version(bundles[1])] == ["candidate"]
    assert "promote" in run(registry, "list", "--history").stdout


@pytest.mark.parametrize("separator", ["\n", "\r\n", "\x85", "\u2028", "\x1b[2K"], ids=ascii)
def test_a_reason_of_several_lines_is_one_line_of_the_history(registry, bundles, separator):
    """Whatever --why holds, an event is one line for people, and as it was given for machines."""
    why = f"better  on{separator}2026-01-01 audits"
    run(registry, "promote", bundles[0], "--why", why)
    lines = run(registry, "list", "--history").stdout.splitlines()
    assert [line.split()[1] for line in lines] == ["add", "promote"]
    assert all(line.endswith("2026-01-01 audits") and "better on " in line for line in lines)
    assert all(line.isprintable() for line in lines)
    assert json.loads(run(registry, "list", "--history", "--json").stdout.splitlines()[-1])["why"] == why


def test_promote_takes_an_alias_and_keeps_a_checkpoint(registry, bundles, tmp_path):
    """The candidate is promoted by its name; weights beside a folder are kept."""
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "model.safetensors").write_bytes(b"weights")
    run(registry, "promote", bundles[0], "--checkpoint", tmp_path / "checkpoint")
    Registry(registry).add(bundles[1], candidate=True)
    assert run(registry, "promote", "candidate").exit_code == 0
    assert (Registry(registry).checkpoint("previous") / "model.safetensors").read_bytes() == b"weights"


def test_verify_names_the_bundle_or_the_file_at_fault(registry, bundles, tmp_path, capsys):
    """A whole bundle is 0, a damaged one 1 with the file's name."""
    assert version(bundles[0]) in run(registry, "verify", bundles[0]).stdout
    broken = tmp_path / "broken"
    shutil.copytree(bundles[0], broken)
    (broken / "README.md").write_text("changed")
    with pytest.raises(SystemExit) as ended:
        cli.main(["bundle", "verify", str(broken), "--registry", registry])
    assert ended.value.code == 1
    assert "README.md has sha256" in capsys.readouterr().err


def test_pull_writes_a_folder(registry, bundles, tmp_path):
    """A bundle comes out of the registry as a folder of its own."""
    run(registry, "promote", bundles[0])
    done = run(registry, "pull", "current", tmp_path / "mine")
    assert done.stdout == f"{tmp_path / 'mine'}\n"
    assert version(tmp_path / "mine") == version(bundles[0])


def test_a_bare_word_is_a_name_and_never_the_folder_beside(registry, bundles, tmp_path, monkeypatch, capsys):
    """What was pulled into ./current does not take the place of current; where it may be meant, that is asked."""
    run(registry, "promote", bundles[0])
    monkeypatch.chdir(tmp_path)
    run(registry, "pull", "current", "./current")
    Registry(registry).add(bundles[1], candidate=True)
    run(registry, "promote", "candidate")
    assert version(bundles[1]) in run(registry, "verify", "current").stdout
    assert version(bundles[0]) in run(registry, "verify", "./current").stdout
    assert run(registry, "promote", "current").stdout.startswith(f"current is {version(bundles[1])}")
    named = source_of("current", registry)
    assert (named.wanted(), source_of("./current", registry).wanted()) == (version(bundles[1]), version(bundles[0]))
    (tmp_path / "current").rename(tmp_path / "mine")
    with pytest.raises(SystemExit):
        cli.main(["bundle", "promote", "mine", "--registry", registry])
    assert "did you mean ./mine?" in capsys.readouterr().err


def test_gc_says_what_it_removes(registry, bundles):
    """A dry run removes nothing; the real one removes what has no alias."""
    run(registry, "promote", bundles[0])
    Registry(registry).add(bundles[1])
    dry = run(registry, "gc", "--older-than-days", "0", "--dry-run")
    assert (dry.stdout, dry.stderr) == (f"{version(bundles[1])}\n", "1 would be removed\n")
    assert len(run(registry, "list").stdout.splitlines()) == 2
    assert run(registry, "gc", "--older-than-days", "0").stdout == f"{version(bundles[1])}\n"
    assert len(run(registry, "list").stdout.splitlines()) == 1


def test_each_command_answers_machines_with_one_object(registry, bundles, tmp_path):
    """With --json stdout is one object with what the text says."""
    first, second = map(version, bundles)

    def told(*arguments):
        return json.loads(run(registry, *arguments, "--json").stdout)

    assert told("promote", bundles[0]) == {"current": first, "previous": None}
    assert told("promote", bundles[1]) == {"current": second, "previous": first}
    assert told("rollback") == {"current": first, "previous": second}
    assert told("verify", bundles[1]) == {"version": second, "path": str(bundles[1])}
    assert told("pull", "current", tmp_path / "mine") == {"path": str(tmp_path / "mine")}
    assert told("gc", "--dry-run") == {"removed": [], "dry_run": True}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["promote", "candidate"], 1, "no bundle 'candidate'"),
        (["rollback"], 1, "no bundle 'previous'"),
        (["promote", "x", "--checkpoint", "y"], 2, "--checkpoint goes with"),
        (["verify", "/nowhere"], 1, "/nowhere: no manifest.json there"),
    ],
    ids=["candidate", "rollback", "checkpoint", "verify"],
)
def test_what_cannot_be_done_is_said(registry, arguments, code, message, capsys):
    """A wrong name is one line on stderr with its exit code."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["bundle", *arguments, "--registry", registry])
    assert ended.value.code == code
    assert message in capsys.readouterr().err


def test_a_store_that_cannot_be_used_is_one_line(capsys):
    """A URL that lacks what its store needs, and a store that is not reached, are told as such."""
    for url, code in (("github://x/y", 2), ("zip://x::/nowhere.zip", 1)):
        with pytest.raises(SystemExit) as ended:
            cli.main(["bundle", "list", "--registry", url])
        assert ended.value.code == code
        assert capsys.readouterr().err.startswith(f"error: registry: {url}")


def test_the_registry_of_the_servers_file_is_the_commands_registry(registry, bundles, monkeypatch, tmp_path):
    """What CLASSIFIER_CONFIG says serves the commands, too."""
    run(registry, "promote", bundles[0])
    (tmp_path / "server.toml").write_text(f'registry = "{registry}"\n')
    monkeypatch.setenv("CLASSIFIER_CONFIG", str(tmp_path / "server.toml"))
    monkeypatch.delenv("CLASSIFIER_REGISTRY", raising=False)
    assert CliRunner().invoke(cli.command, ["bundle", "list"]).stdout.startswith(version(bundles[0]))


def test_the_users_own_registry_is_the_default(monkeypatch, tmp_path, bundles):
    """Without --registry the state folder's is used."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("CLASSIFIER_REGISTRY", raising=False)
    assert CliRunner().invoke(cli.command, ["bundle", "promote", str(bundles[0])]).exit_code == 0
    assert Registry(tmp_path / "classifier" / "registry").resolve("current") == version(bundles[0])


def test_commands_without_a_server_take_the_names_that_serve_takes(bundles, tmp_path, monkeypatch, capsys):
    """`--bundle NAME` and its variable mean the registry wherever a bundle is read; a server has its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLASSIFIER_REGISTRY", str(tmp_path / "registry"))
    monkeypatch.setenv("CLASSIFIER_BUNDLE", "current")
    run(str(tmp_path / "registry"), "promote", bundles[0])
    (tmp_path / "log.jsonl").write_text('{"prompt": "hi"}\n')

    def done(*arguments):
        return CliRunner().invoke(cli.command, arguments, catch_exceptions=False).stdout

    assert json.loads(done("classify", "--json", "hi"))["bundle_version"] == version(bundles[0])
    label = ("label", "log.jsonl", "-o", "out.jsonl", "--processes", "1")
    assert version(bundles[0]) in done(*label, "--dry-run")
    done(*label)
    assert "1 rows under policy economy" in done("relabel", "out.jsonl", "--policy", "economy")
    monkeypatch.setenv("CLASSIFIER_BUNDLE", "nope")
    with fake_server() as address:
        assert "fake000000000000" in done(*label, "--dry-run", "--address", address)
    for arguments in (
        ["classify", "hi"],
        label,
        ["relabel", "out.jsonl", "--policy", "economy"],
        ["feedback", "drift"],
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == 1
        assert "no bundle 'nope' there; it has" in capsys.readouterr().err
