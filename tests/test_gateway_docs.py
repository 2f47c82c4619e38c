"""The pages on gateways, routes, HTTP and explanations: commands run as they stand, every failure told has its test."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from classifier.bundle import MANIFEST, SHIPPED
from classifier.testing import fake_server
from tests.serving_support import server_process

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(not (SHIPPED / MANIFEST).is_file(), reason="no bundle was shipped yet")


def failures_tested():
    """(row, column) of the table of failures that some test of this repository is marked with."""
    calls = [
        node
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.failure"
    ]
    marked = [[argument.value for argument in call.args] for call in calls]
    return {(row, column) for row, *columns in marked for column in columns}


def test_every_cell_of_the_table_of_failures_has_a_test():
    """What a gateway does when something fails is told and tested; a dash means that nothing can fail so there."""
    text = (ROOT / "docs" / "gateways.md").read_text(encoding="utf-8")
    table = text.partition("## What happens when something fails\n")[2].partition("\n\n")[0]
    head, _, *rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.splitlines()]
    told = {
        (row[0].split("**")[1], column)
        for row in rows
        for column, cell in zip(head, row[1:], strict=True)
        if cell != "—" and not cell.endswith("run two")  # advice, nothing that it does
    }
    assert {"slow", "down", "overloaded", "wrong tier"} <= {row for row, _ in told}
    assert failures_tested() == told


def blocks(page, language):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"<!-- test: runs -->\n```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def shell(tmp_path):
    """Runs lines of a page in a folder that has the examples, with `classifier` on the path; returns stdout."""
    shutil.copytree(ROOT / "docs" / "examples", tmp_path / "docs" / "examples", ignore=lambda *_: {"node"})
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "classifier"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m classifier "$@"\n')
    command.chmod(0o755)
    environ = {key: value for key, value in os.environ.items() if not key.startswith("CLASSIFIER_")}
    environ |= {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}

    def run(lines, interpreter=("bash", "-euo", "pipefail", "-c")):
        done = subprocess.run(
            [*interpreter, lines], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_the_routing_page_shows_what_check_prints(shell):
    """The table on the page is the command's output; a request that no route may take is refused."""
    check, classify = blocks("routing.md", "sh")
    text = (ROOT / "docs" / "routing.md").read_text(encoding="utf-8")
    [shown] = re.findall(r"<!-- test: output -->\n```text\n(.*?)```", text, re.DOTALL)
    assert shell(check) == shown
    first, *rest = shell(classify).splitlines()
    assert first.startswith("simple  (model; policy balanced")
    assert first.endswith("route local-small")
    assert rest[-1] == "refused, as it should be: exit code 1"


def test_the_routing_page_falls_back_on_premises(shell):
    """Without a server the client of the page answers with a route on premises."""
    [block] = blocks("routing.md", "python")
    code = block.replace("127.0.0.1:50051", "unix:/nowhere/c.sock")
    assert shell(code, (sys.executable, "-W", "error", "-c")).split()[-2:] == ["local-large", "UNAVAILABLE"]


def test_the_page_on_explanations_runs(shell):
    """What the page shows is what the shipped bundle prints, not what an earlier one did."""
    explained, whole = blocks("explaining.md", "sh")
    [shown] = re.findall(
        r"<!-- test: output -->\n```text\n(.*?)```", (ROOT / "docs" / "explaining.md").read_text("utf-8"), re.DOTALL
    )
    assert [line.rstrip() for line in shell(explained).splitlines()] == shown.splitlines()
    assert "the conversation before" in shell(whole)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_page_on_http_runs(shell, tmp_path):
    """Every call of the page is answered with success by a server that keeps feedback."""
    [block] = blocks("http.md", "sh")
    with (
        fake_server(feedback_url=f"sqlite:///{tmp_path}/f.db") as address,
        server_process("gateway", "http", "--listen", "127.0.0.1:0", "--address", address, module="classifier") as http,
    ):
        [base] = http.wait_ready()
        found = shell(block.replace("http://127.0.0.1:8080", base).replace("curl -s", "curl -sS --fail-with-body"))
    for part in ('"tier":"TIER_STANDARD"', '"results":[{"response"', '"state":"OUTCOME_STATE_', '"default_policy"'):
        assert part in found
    assert found.endswith('{"status":"SERVING"}')
