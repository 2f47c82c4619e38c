"""What harnesses send in the user's name is read as what it is, so that an agent's request is rated as a person's."""

import time

import pytest

from classifier.harness import without_blocks
from classifier.inputs import rated_index, render
from classifier.types import Request

ENVIRONMENT = "<environment_details>\n# Open Tabs\na.py\n</environment_details>"
PROJECT = "# AGENTS.md instructions for /src\n\n<INSTRUCTIONS>\nRun make test.\n</INSTRUCTIONS>"


def chat(*turns):
    return Request.from_messages([{"role": role, "content": content} for role, content in turns])


@pytest.mark.parametrize(
    "content",
    [
        "<git_status>\nM a.py\n</git_status>\n<agent_skills>review</agent_skills>\n<user_query>\nASK\n</user_query>",
        "<USER_REQUEST>\nASK\n</USER_REQUEST>\n<ADDITIONAL_METADATA>\nnoon\n</ADDITIONAL_METADATA>",
        "<environment_info>\nLinux\n</environment_info>\n<editorContext>\na.py\n</editorContext>\n"
        "<userRequest>\nASK\n</userRequest>",
        "<permissions instructions>none</permissions instructions>\n<collaboration_mode>on</collaboration_mode>\nASK",
        "<local-command-caveat>Caveat</local-command-caveat><bash-input>ls</bash-input>\nASK",
    ],
)
def test_what_a_person_wrote_is_read_without_what_an_editor_or_agent_adds(content):
    """Blocks of a harness are removed, and the tags around a person's own words."""
    asked = "fix the typo"
    assert render(Request.from_text(content.replace("ASK", asked))) == render(Request.from_text(asked))


@pytest.mark.parametrize(
    "content", ["what does <user_query> mean?", "<EditorContext><A /></EditorContext>: why twice?"]
)
def test_what_a_person_wrote_about_tags_stays(content):
    """A tag that is not closed, and a component of the same name in other letters, belong to the request."""
    assert render(Request.from_text(content)).text == content


def test_a_result_of_a_tool_called_in_text_is_read_as_one_of_a_tool():
    """Whether an agent's tools are called in text or by the API, the same message is rated, in the same context."""
    asked, called = ("user", f"fix the failing test\n{ENVIRONMENT}"), ("assistant", "I'll read it.")
    result = "[read_file for 'src/a.py'] Result:\n1 | import b"
    in_text = chat(asked, called, ("user", f"{result}\n{ENVIRONMENT}"))
    native = chat(("user", "fix the failing test"), called, ("tool", result))
    assert (render(in_text).text, render(in_text).context) == (render(native).text, render(native).context)
    assert rated_index(in_text) == 0


@pytest.mark.parametrize(
    "content",
    [
        "[attempt_completion] Result:\nThe user has feedback:\n<feedback>\nnow in Go\n</feedback>",
        "[ask_followup_question for 'Which one?'] Result:\n<answer>\nthe first\n</answer>",
        "Result: rewrite this as a list",
        "[Request interrupted by user]\nuse tabs instead",
        f"{PROJECT}\n\nfix the failing test",
        "# AGENTS.md instructions for my repository: write them",
    ],
    ids=["feedback", "answer", "prose", "interrupted", "project-and-prompt", "about-it"],
)
def test_what_a_person_added_is_rated(content):
    """Words of a person in such a message make it the user's."""
    assert rated_index(chat(("user", "earlier"), ("assistant", "done"), ("user", content))) == 2


@pytest.mark.parametrize(
    "content", [PROJECT, f"{PROJECT}\n{ENVIRONMENT}", "[Request interrupted by user for tool use]"]
)
def test_instructions_and_remarks_of_a_harness_are_no_turn(content):
    """They are not rated, no turn, no part of the length, and of the context like any further system prompt."""
    system, asked = ("system", "You are an agent."), ("user", "fix the failing test")
    assert render(chat(system, ("user", content), asked)) == render(chat(system, asked))
    assert rated_index(chat(system, asked, ("assistant", "On it."), ("user", content))) == 1


def test_where_a_harness_alone_speaks_its_last_message_is_rated():
    """A conversation that was cut to results of tools still has a message to rate."""
    result = "[execute_command for 'make test'] Result:\n3 failed"
    assert render(chat(("assistant", "I'll run them."), ("user", result))).text == result


@pytest.mark.parametrize(
    ("tag", "is_block"),
    [
        ("<reminder->", True),
        ("<REMINDER a='b'>", True),
        ("<tas\u212a_progress>", True),
        (f"<reminder{' ' * 200}>", True),
        (f"<reminder{' ' * 201}>", False),
        ("<reminder_>", False),
        ("<reminder-s>", False),
        (f"<reminder-{'x' * 40}>", False),
        ("<editorContext>", True),
        ("<EditorContext>", False),
    ],
)
def test_a_tag_is_of_a_block_by_its_whole_name(tag, is_block):
    """A longer name is another one, signs behind it are none of it, and 200 characters may follow."""
    name = tag.strip("<>").split("'")[0].split(" ")[0].rstrip("-")
    assert (without_blocks(f"a {tag}b</{name}> c") == "a  c") is is_block


@pytest.mark.parametrize(
    ("content", "unit"),
    [
        ("Q: y{}x\nA:", "\n"),
        ("Q: y{}x\nA:", "\n "),
        ("Below is an instruction {}x", " "),
        ("[Request interrupted by user]{}x", " \n"),
        ("[read_file for '{}x", "']"),
        ("<s>{}[INST] [/INST", " "),
        ("# AGENTS.md instructions{}", " >"),
        ("{}", "<user_query>"),
        ("{}", "<reminder "),
        ("{}", "<a"),
        ("{}", f"<{'a-' * 20}a{' ' * 199}x"),
    ],
)
def test_no_text_makes_the_reading_of_it_long(content, unit):
    """A long text of what nearly is a harness's takes milliseconds; by its square it would take minutes."""
    request = chat(("user", "earlier"), ("user", content.format(unit * (120_000 // len(unit)))))
    start = time.process_time()
    render(request)
    assert time.process_time() - start < 5
