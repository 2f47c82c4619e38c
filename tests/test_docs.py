"""What the pages and `--help` tell to type can be typed: commands, options, anchors."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from classifier import cli
from training.__main__ import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "data").glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "node_modules" not in page.parts]
TOLD = [page for page in PAGES if page.name != "LOG.md" and page.parent.name != "design"]  # those tell of the past


def programs() -> dict[str, click.Command]:
    """The commands that pages call, by how they are called."""
    return {"classifier": cli.command, "python -m classifier": cli.command, "python -m training": main}


def walk(command: click.Command, name: str, parent: click.Context | None = None):
    """Every command with its context, groups before what is in them."""
    context = click.Context(command, info_name=name, parent=parent)
    yield context
    if isinstance(command, click.Group):
        for verb in command.list_commands(context):
            inner = command.get_command(context, verb)
            if inner is not None:
                yield from walk(inner, verb, context)


def commands_in(text: str) -> list[tuple[str, list[str]]]:
    """(program, arguments) of each call of ours in lines of shell; what stands behind a pipe or a comment is not it."""
    calls = []
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        for program in ("python -m classifier", "python -m training", "classifier"):
            if found := re.match(rf"\s*(?:\$ )?(?:[\w-]+ .* -m )?{program} (.*)", line):
                words = shlex.split(re.split(r" (?:\||>|<|&|\|\||;)(?: |$)", found[1])[0], comments=True)
                calls.append((program, words))
                break
    return calls


def check_call(program: str, words: list[str]) -> None:
    """Raises what the command would say of its words, without running it; paths need not be there."""
    command, context = programs()[program], None
    while isinstance(command, click.Group):
        context = click.Context(command, info_name=program, parent=context)
        name, command, words = command.resolve_command(context, words)
        assert command is not None, name
    parser = command.make_parser(click.Context(command, info_name=program, parent=context))
    parser.parse_args(args=words)


@pytest.mark.parametrize("page", TOLD, ids=lambda p: p.name)
def test_commands_on_a_page_have_the_options_that_it_names(page):
    """Each call of `classifier` and of `python -m training` in a block names verbs and options that there are."""
    blocks = re.findall(r"```(?:sh|console)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    for program, words in commands_in("\n".join(blocks)):
        if program in programs():
            check_call(program, words)


def test_every_help_shows_whole_sentences_and_calls_that_can_be_made():
    """No command's line in its group's list is cut off, and the examples of each help name options that there are."""
    for name, program in programs().items():
        for context in walk(program, name):
            shown = context.command.get_help(context)
            assert not re.search(r"\.\.\.$", shown.partition("\nCommands:")[2], re.MULTILINE), context.command_path
            calls = commands_in(context.command.help or "")
            assert calls or isinstance(context.command, click.Group), context.command_path
            for called, words in calls:
                check_call(called, words)


def options(*paths: str) -> set[str]:
    """The options of commands, or of all of them where none is named."""
    found = [(context.command_path, context.command) for name, p in programs().items() for context in walk(p, name)]
    assert set(paths) <= {path for path, _ in found}
    kept = [command for path, command in found if not paths or path in paths]
    return {flag for command in kept for param in command.params for flag in (*param.opts, *param.secondary_opts)}


def spans(page: Path) -> list[str]:
    """What stands as code in the sentences and tables of a page, and each line of its blocks."""
    blocks = re.split(r"^```.*$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    inline = [span for text in blocks[::2] for span in re.findall(r"`([^`\n]+)`", text)]
    return inline + [line for text in blocks[1::2] for line in text.splitlines()]


@pytest.mark.parametrize(
    ("name", "commands"),
    [
        ("evaluation", ["python -m training evaluate"]),
        ("bulk", ["classifier label", "classifier relabel"]),
        ("report", ["classifier report", "classifier sample"]),
        ("http", ["classifier gateway http", "classifier serve"]),
    ],
)
def test_an_option_on_a_commands_page_is_that_commands(name, commands):
    """Where a page is about a command, an option that stands alone is its own; another's stands behind its verb."""
    if set(commands) - {context.command_path for n, p in programs().items() for context in walk(p, n)}:
        pytest.skip("needs the extra training")
    told = [span.split()[0].partition("=")[0] for span in spans(ROOT / "docs" / f"{name}.md") if span.startswith("--")]
    assert told
    assert [option for option in told if option not in options(*commands)] == []


# What these do is said by their help, and nobody looks for it on a page.
PLAIN = {
    "--ceiling", "--folds", "--help", "--output", "--source", "--split", "--timeout", "--top", "--until", "--version",
}  # fmt: skip


def test_every_option_is_on_a_page():
    """What a command can do beside the plain is told where its users read of it, and not by its help alone."""
    told = {flag for page in TOLD for span in spans(page) for flag in re.findall(r"--[a-z][a-z0-9-]+", span)}
    table = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "serving.md").read_text(encoding="utf-8"), re.MULTILINE)
    told |= {f"--{setting.replace('_', '-')}" for setting in table}
    long = {flag for flag in options() if flag.startswith("--") and not flag.startswith("--no-")}
    assert sorted(long - told - PLAIN) == []


def anchors(page: Path) -> set[str]:
    """What headings can be linked to as, by GitHub's rule."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_anchors_between_documents_hold(page):
    """Every link to a heading, of the same page or another, leads to one."""
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert anchor in anchors(page.parent / target if target else page), f"{target}#{anchor}"
