"""`classifier routing check`: what it shows and what it warns of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from classifier import cli

EXAMPLE = Path(__file__).parent.parent / "docs" / "examples" / "routing.toml"


def check(*arguments):
    return CliRunner().invoke(cli.command, ["routing", "check", *map(str, arguments)])


def test_check_shows_where_requests_go():
    """Each tier with its routes in order, and where a restricted request ends."""
    done = check(EXAMPLE)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].split()[:2] == ["tier", "model"]
    assert lines[1].split() == ["simple", "local-small", "0.10", "32,000", "on", "premises", "local-small"]
    assert lines[-1].endswith("local-large (complex, no promise)")
    assert done.stderr == ""


def test_a_small_price_is_not_rounded(tmp_path):
    """A price has two decimals, and as many more as it takes."""
    (tmp_path / "t.toml").write_text('[routes.simple]\nmodel = "small"\nprice_per_million_tokens = 0.0375')
    assert check(tmp_path / "t.toml").stdout.splitlines()[1].split()[:3] == ["simple", "small", "0.0375"]


def test_a_table_without_a_route_cannot_be_used(tmp_path):
    """It ends with exit code 2 and the file's name."""
    (tmp_path / "t.toml").write_text("[routes]\nsimple = []")
    done = check(tmp_path / "t.toml")
    assert getattr(done.exception, "exit_code", 0) == 2
    assert str(done.exception).startswith(f"{tmp_path / 't.toml'}: has no routes")


def test_check_prints_json_for_machines(tmp_path):
    """`--json` has every field of each route, where a restricted request goes, and the warnings."""
    (tmp_path / "t.toml").write_text('[routes.simple]\nmodel = "small"')
    found = json.loads(check(tmp_path / "t.toml", "--json").stdout)
    assert found["tiers"]["simple"] == {
        "routes": [
            {
                "tier": "simple",
                "model": "small",
                "price_per_million_tokens": 0.1,
                "context_window": 0,
                "on_premises": False,
            }
        ],
        "restricted": None,
    }
    assert [w.split()[0] for w in found["warnings"]] == ["standard", "complex", "frontier", "no"]


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (("[routes.frontier]", "[routes.complex_]"), None),
        (
            ("price_per_million_tokens = 100.0", "price_per_million_tokens = 1.0"),
            "frontier (cloud-frontier) costs less",
        ),
        (("on_premises = true", "on_premises = false"), "no route is on premises; requests with data=restricted"),
    ],
    ids=["bad-tier", "price", "place"],
)
def test_check_warns_and_strict_is_exit_code_3(tmp_path, change, warning):
    """What is perhaps not meant is a warning on stderr, and with --strict an exit code; a bad table is exit code 2."""
    path = tmp_path / "t.toml"
    path.write_text(EXAMPLE.read_text().replace(*change))
    done, strict = check(path), check(path, "--strict")
    codes = [done.exit_code, getattr(done.exception, "exit_code", 0), getattr(strict.exception, "exit_code", 0)]
    if warning is None:
        assert codes[1:] == [2, 2]
        assert "unknown tier 'complex_'" in str(done.exception)
    else:
        assert (codes[0], codes[2]) == (0, 3)
        assert f"warning: {warning}" in done.stderr
