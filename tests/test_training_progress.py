"""How far a long step of training is can be read on a terminal and in a log."""

import sys

import pytest

from training import progress
from training.progress import progress_bar


@pytest.fixture
def run(capsys, monkeypatch):
    def go(*, seconds=60.0, terminal=False, **more):
        monkeypatch.setattr(progress, "SECONDS", seconds)
        monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
        assert list(progress_bar("abcd", desc="student", unit="step", **more)) == [*"abcd"]
        return capsys.readouterr().err

    return go


def test_log_gets_whole_lines_with_the_time_to_go(run):
    """Where nobody watches, each report is a line of its own: how many of how many, and what is left."""
    half = next(line for line in run(seconds=0.0).splitlines() if "2 of 4" in line)
    assert half.startswith("student: 2 of 4 (50 %), ")
    assert half.endswith(" to go")


def test_short_step_leaves_nothing_in_a_log(run):
    """What is done within a minute is not worth a line."""
    assert run() == ""


def test_word_in_between_stands_alone_in_a_log(capsys, monkeypatch):
    """What a step has to say is one line of a log, and brings no report with it."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    with progress_bar(total=2, desc="jury", unit="question") as bar:
        bar.write("stopping", file=sys.stderr)
    assert capsys.readouterr().err == "stopping\n"


def test_terminal_shows_a_bar_that_is_drawn_over(run):
    """On a terminal one line changes in place, from the start."""
    shown = run(terminal=True)
    assert "\r" in shown
    assert "\n" not in shown.rstrip("\n")


@pytest.mark.parametrize("terminal", [True, False])
def test_hidden_step_says_nothing(run, terminal):
    """Of processes that train together one speaks."""
    assert run(seconds=0.0, terminal=terminal, hidden=True) == ""
