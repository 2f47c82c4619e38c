"""`classifier feedback`: export, forget, migrate."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from classifier import Client, cli
from classifier.database import Database
from classifier.errors import ClassifierError
from classifier.exports import read_export
from classifier.feedback import open_store
from tests.feedback_support import KEY, decision, mint, outcome, request
from tests.serving_support import server_process


@pytest.fixture
def url(tmp_path):
    """A store with three decisions, at the first second of three days, two of them of one tenant."""
    found = f"sqlite:///{tmp_path}/feedback.db"
    now = [0.0]
    store = open_store(found, key=KEY, clock=lambda: now[0], retention_days=1e6)
    for day, tenant in enumerate(["acme", "other", "acme"]):
        now[0] = 1_767_225_600.0 + day * 86_400  # 2026-01-01 and on
        store.record(decision(mint()), request(labels={"tenant": tenant}), "gateway")
    store.close()
    return found


def run(*arguments: str):
    """Runs the command in this process."""
    return CliRunner().invoke(cli.command, ["feedback", *arguments])


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_export_writes_a_file_and_says_how_many_rows(url, tmp_path, suffix):
    """Every decision is in the file, which is there whole or not at all."""
    path = tmp_path / f"out.{suffix}"
    done = run("export", "-o", str(path), "--feedback-url", url)
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "3 rows\n")
    assert [row["labels"]["tenant"] for row in read_export(path)] == ["acme", "other", "acme"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600  # it may hold prompts


def test_a_folder_that_is_not_there_is_to_be_made_first(url, tmp_path):
    """An export into no folder says what to do about that: space is not what is wanting."""
    done = run("export", "-o", str(tmp_path / "none" / "out.jsonl"), "--feedback-url", url)
    assert "make its folder first" in str(done.exception)


def test_an_export_is_its_owners_from_the_first_byte(url, tmp_path, monkeypatch):
    """Nobody can open it in the moment before its rights are set, and read on."""
    written = []
    monkeypatch.setattr("classifier.exports.write_lines", lambda _, file: written.append(os.fstat(file.fileno())) or 3)
    run("export", "-o", str(tmp_path / "out.jsonl"), "--feedback-url", url)
    assert [stat.S_IMODE(found.st_mode) for found in written] == [0o600]


def test_export_to_stdout_is_json_lines(url):
    """`-o -` writes rows to stdout and everything else to stderr."""
    done = run("export", "-o", "-", "--feedback-url", url)
    assert [json.loads(line)["tier"] for line in done.stdout.splitlines()] == ["simple"] * 3


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        (["--since", "2026-01-02"], 2),
        (["--until", "2026-01-02"], 1),
        (["--since", "2026-01-02", "--until", "2026-01-03"], 1),
        (["--since", "2026-01-02T01:00:00+02:00"], 2),
        (["--since", "2030-01-01"], 0),
    ],
    ids=["since", "until", "both", "zone", "none"],
)
def test_export_of_a_time_span(url, arguments, count):
    """A span has its first moment and not its last; a time without a zone is UTC."""
    assert len(run("export", "-o", "-", "--feedback-url", url, *arguments).stdout.splitlines()) == count


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["export", "-o", "x.csv"], 1, "ends in .jsonl or .parquet"),
        (["export", "-o", "/nowhere/x.jsonl"], 1, "cannot be written"),
        (["export", "-o", "-", "--since", "yesterday"], 2, "expected a time"),
        (["forget"], 2, "say what to forget"),
        (["expire", "--older-than-days", "nan"], 2, "--older-than-days: expected 0 or more"),
        (["expire", "--older-than-days", "-1"], 2, "--older-than-days: expected 0 or more"),
        (["drift", "--max-index", "nan"], 2, "--max-index: expected a number"),
        (["forget", "--label", "tenant"], 2, "expected NAME=VALUE"),
        (["forget", "--decision-id", "\udcff"], 2, "expected an id"),
        (["forget", "--decision-id", "x" * 9000], 2, "expected an id"),
    ],
    ids=["suffix", "folder", "time", "nothing", "no-age", "age", "index", "label", "id", "long id"],
)
def test_what_cannot_be_done_is_said(url, arguments, code, message, capsys):
    """A wrong argument is one line on stderr with its exit code."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["feedback", *arguments, "--feedback-url", url])
    assert ended.value.code == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("there", ["nothing", "an empty file", "another database"])
@pytest.mark.parametrize("command", [["export", "-o", "-"], ["forget", "--label", "tenant=acme"], ["drift"]])
def test_a_store_that_is_not_there_is_not_made(tmp_path, command, there, capsys):
    """Who reads or forgets at a wrong address is told so, and finds there what was there before."""
    path = tmp_path / "folder" / "feedback.db"
    before = None
    if there != "nothing":
        path.parent.mkdir()
        with contextlib.closing(sqlite3.connect(path)) as other:
            other.execute("CREATE TABLE decisions (x)" if there == "another database" else "SELECT 1")
        before = path.read_bytes()
    with pytest.raises(SystemExit) as ended:
        cli.main(["feedback", *command, "--feedback-url", f"sqlite:///{path}"])
    assert ended.value.code == 1
    assert "no feedback store there; give --feedback-url, as the server has it" in capsys.readouterr().err
    if before is None:
        assert list(tmp_path.iterdir()) == []
    else:
        assert path.read_bytes() == before


@pytest.mark.parametrize("damage", ["another file", "a page overwritten"])
def test_a_file_that_is_no_database_is_not_to_be_tried_again(url, damage, capsys):
    """What time does not mend comes with what does: another address, or a backup."""
    path = Path(url.removeprefix("sqlite:///"))
    whole = path.read_bytes()
    path.write_bytes(b"notes, " * 1000 if damage == "another file" else whole[:100] + b"\xff" * (len(whole) - 100))
    with pytest.raises(SystemExit) as ended:
        cli.main(["feedback", "export", "-o", "-", "--feedback-url", url])
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert "no SQLite database" in said if damage == "another file" else "the file is damaged" in said
    assert "restore it from a backup" in said
    assert "retry" not in said


@pytest.mark.parametrize(
    ("where", "code", "message"),
    [
        ("/x" * 3000, 1, "failed (OSError File name too long); retry later, and check its address and the rights"),
        ("/nowhere/a?b.db", 2, "no ? can be in it"),
        ("/nowhere/a.db?timeout=long", 2, "no ? can be in it"),
    ],
    ids=["long", "question mark", "option"],
)
def test_an_address_that_leads_nowhere_is_said(where, code, message, capsys):
    """A path that cannot be looked at is an error of the store; one with a ? would be cut there, and is refused."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["feedback", "export", "-o", "-", "--feedback-url", f"sqlite:///{where}"])
    assert ended.value.code == code
    assert message in capsys.readouterr().err


def test_the_store_of_the_servers_file_is_the_commands_store(url, tmp_path, monkeypatch):
    """A flag comes before its variable, that before CLASSIFIER_CONFIG's file; its other settings do not matter."""
    (tmp_path / "server.toml").write_text(f'feedback_url = "{url}"\nlisten = ["0.0.0.0:50051"]\n')
    monkeypatch.setenv("CLASSIFIER_CONFIG", str(tmp_path / "server.toml"))
    assert len(run("export", "-o", "-").stdout.splitlines()) == 3
    monkeypatch.setenv("CLASSIFIER_FEEDBACK_URL", f"sqlite:///{tmp_path}/elsewhere.db")
    assert run("export", "-o", "-").exit_code == 1
    assert len(run("export", "-o", "-", "--feedback-url", url).stdout.splitlines()) == 3


def test_forget_by_label_says_what_it_did_and_what_it_cannot_reach(url, tmp_path):
    """The tenant's decisions are gone, the others stay, and exports and backups are named as out of reach."""
    done = run("forget", "--label", "tenant=acme", "--feedback-url", url)
    assert done.stdout == "2 decisions and 0 outcomes forgotten\n"
    assert "exports and backups" in done.stderr
    left = run("export", "-o", "-", "--feedback-url", url).stdout.splitlines()
    assert [json.loads(line)["labels"] for line in left] == [{"tenant": "other"}]


def test_forget_finds_a_label_whatever_the_locale(url, monkeypatch):
    """Where the locale has no UTF-8 a label comes as Python keeps such bytes, and is the label that was meant."""
    found = []
    monkeypatch.setattr("classifier.ledger.Ledger.labelled", lambda _, *pair: found.append(pair) or [])
    assert run("forget", "--label", "tenant=\udce8\udca8\udcbc", "--feedback-url", url).exit_code == 0
    assert found == [("tenant", "証")]


def test_what_is_too_old_expires_when_asked(url, monkeypatch):
    """Without a server the command applies retention."""
    monkeypatch.setattr(time, "time", lambda: 1_767_225_600.0 + 2.5 * 86_400)
    done = run("expire", "--older-than-days", "1", "--feedback-url", url)
    assert (done.exit_code, done.stdout) == (0, "1 decisions and 0 outcomes are left\n")
    assert run("expire", "--older-than-days", "-1", "--feedback-url", url).exit_code == 2


def test_what_a_server_no_longer_keeps_is_said_to_stay(url, tmp_path, tiny_bundle_path):
    """With --store off nothing of an earlier store expires, and the server says so and what to do."""
    serve = ["--bundle", str(tiny_bundle_path), "--listen", "127.0.0.1:0", "--store", "off", "--feedback-url", url]
    with server_process(*serve) as server:
        said = server.wait_said("nothing in it expires any more")
    assert f"{tmp_path}/feedback.db" in said
    assert "classifier feedback expire" in said


def test_forget_by_id_for_machines(url):
    """One decision is forgotten; again there is nothing left to forget."""
    row = json.loads(run("export", "-o", "-", "--feedback-url", url).stdout.splitlines()[0])
    arguments = ["forget", "--json", "--decision-id", row["decision_id"], "--feedback-url", url]
    first, second = (json.loads(run(*arguments).stdout) for _ in range(2))
    assert (first["decisions"], second["decisions"]) == (1, 0)
    assert first["not_reached"]


def test_each_command_answers_machines_with_one_object(url, tmp_path, monkeypatch):
    """With --json stdout is one object with what the text says; rows on stdout leave no place for it."""
    monkeypatch.setattr(time, "time", lambda: 1_767_225_600.0 + 2.5 * 86_400)
    shared = ("--json", "--feedback-url", url)
    assert json.loads(run("migrate", *shared).stdout) == {"steps": []}
    assert json.loads(run("export", "-o", str(tmp_path / "e.jsonl"), *shared).stdout) == {"rows": 3, "pending": 0}
    left = {"left": {"decisions": 1, "outcomes": 0}}
    assert json.loads(run("expire", "--older-than-days", "1", *shared).stdout) == left
    refused = run("export", "-o", "-", *shared)
    assert (refused.exit_code, "choose one of them" in refused.stderr) == (2, True)


def test_what_a_server_keeps_by_default_is_what_the_commands_read(tiny_bundle_path, tmp_path, monkeypatch):
    """Decisions go into the user's own SQLite, without text, and the commands look there; off keeps none."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    serve = ["--bundle", str(tiny_bundle_path), "--listen", "127.0.0.1:0"]
    for store in ("off", "hash"):
        with (
            server_process(*serve, env={"CLASSIFIER_STORE": store, "XDG_STATE_HOME": str(tmp_path)}) as server,
            Client(server.wait_ready()[0]) as client,
        ):
            answer = client.classify("my secret question", timeout_seconds=60)
            if store == "off":
                assert list(tmp_path.iterdir()) == []
                with pytest.raises(ClassifierError, match="--store off"):
                    client.report_outcome(outcome(answer.decision.decision_id), timeout_seconds=60)
            else:
                assert client.report_outcome(outcome(answer.decision.decision_id), timeout_seconds=60)
    [row] = map(json.loads, run("export", "-o", "-").stdout.splitlines())
    assert (row["decision_id"], row["request"], row["verdict"]) == (answer.decision.decision_id, None, "accepted")
    assert {p.name for p in (tmp_path / "classifier").iterdir()} >= {"feedback.db", "server.key"}


def test_the_demo_reports_two_outcomes_and_shows_what_is_kept():
    """`make demo`: both join, sent again they change nothing, and the store's export has them with their decisions."""
    demo = Path(__file__).parent.parent / "docs" / "examples" / "demo.py"
    done = subprocess.run([sys.executable, demo], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"JOINED +DUPLICATE", done.stdout)) == 2
    kept = done.stdout.partition("without their text:\n")[2].splitlines()
    assert [line.split()[2] for line in kept[1:3]] == ["accepted", "escalated"]
    assert "exit code 0" in kept[-1]


def test_migrate_makes_the_tables_once(tmp_path):
    """The first run names its steps, the second has nothing to do."""
    url = f"sqlite:///{tmp_path}/new.db"
    assert run("migrate", "--feedback-url", url).stdout.splitlines()[0] == "m001_decisions_and_outcomes"
    assert run("migrate", "--feedback-url", url).stdout == "nothing to do\n"


def test_migrate_on_postgresql(postgresql):
    """A shared database is migrated by the command alone, and usable after it."""
    url = postgresql.database()
    assert "m002" in run("migrate", "--feedback-url", url).stdout
    database = Database(url)
    database.check()
    database.close()


def test_who_may_only_read_a_store_is_told_so(postgresql, capsys):
    """What PostgreSQL forbids is not to be tried again: a right is missing. Reading goes on."""
    url = postgresql.migrated()
    store = open_store(url, key=KEY)
    store.record(decision(mint()), request(), "gateway")
    store.close()
    with contextlib.closing(Database(url)) as database, database.transaction() as connection:
        connection.exec_driver_sql("CREATE ROLE reader LOGIN")
        connection.exec_driver_sql("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader")
    ended = {}
    for command in (["export", "-o", "-"], ["expire", "--older-than-days", "1e-9"]):
        with pytest.raises(SystemExit) as end:
            cli.main(["feedback", *command, "--feedback-url", url.replace("classifier@", "reader@")])
        ended[command[0]] = end.value.code
    assert ended == {"export": 0, "expire": 1}
    assert "42501); its user lacks a right" in capsys.readouterr().err
