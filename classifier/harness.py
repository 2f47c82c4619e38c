"""What harnesses add to a conversation in the user's name, and what is left without it. Pure; linear.

An editor or an agent puts its state, its reminders and a project's rules around what a person wrote, each in a tag of
its own, and some send whole messages so: results of tools that were called in text, instructions, remarks. Nobody asked
for any of it. The tags are those that the harnesses of 2025 and 2026 send; a tag that prompts use for a person's own
material (`context`, `instructions`, `rules`, `task`) is none of them.

Knows nothing of requests, tokens or models.
"""

from __future__ import annotations

import re
from dataclasses import replace

from classifier.types import Message

_TAGS = frozenset(
    """
    system-reminder system_reminder reminder reminderinstructions system_notification task-notification task_progress
    command-name command-message command-args local-command-stdout local-command-stderr local-command-caveat bash-input
    bash-stdout bash-stderr slash-command user-prompt-submit-hook hook_context session_context context_window
    environment_details environment_context environment_info workspace_info project_layout git_status turn_aborted
    ide_state ide_opened_file ide_selection editor_context editor_state open_files open_and_recently_viewed_files
    recently_viewed_files attached_files_metadata image_files additional_data user_info user_rules agent_skills
    always_applied_workspace_rules agent_requestable_workspace_rules agent_transcripts mcp_file_system
    skills_instructions apps_instructions collaboration_mode recommended_plugins additional_metadata
    user_settings_change ephemeral_message runtime_information repository_info repository_instructions
    """.split()  # noqa: SIM905 - fifty names are read more easily so
) | {"permissions instructions"}
"""Names of blocks, in any case."""
_CAMEL_TAGS = frozenset({"editorContext"})
"""Names in this case alone: with another first letter it is a component of a program."""
# No name has fewer than eight letters. What is read of a tag is not given back: its end cannot lie before that.
_TAG = re.compile(r"<(/?)(?>([a-z][\w-]{7,40}(?: instructions)?)\b)[^<>]{0,200}+>", re.IGNORECASE)
_QUERY_TAGS = ("user_query", "userRequest", "USER_REQUEST")
"""What a harness puts around a person's own words: these stay, the tags go."""
_TOOL = re.compile(r"\[\w{1,80}(?: for '[^\n]{0,1000}')?\] Result:")
_PERSON_TAGS = ("<feedback>", "<user_message>", "<answer>")
_INTERRUPTED = re.compile(r"\[Request interrupted by user(?: for tool use)?\]")
_PROJECT = re.compile(r"# AGENTS\.md instructions\b")


def by_speaker(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages, those that a harness sent in the user's name given to who speaks in them: a tool, or the system.

    Harnesses whose tools are called in text send a result as `[name for 'path'] Result:`, with what the person added
    in a tag; others send a project's instructions, or that they were interrupted. Where no message would be left to
    the user, all stay as they are.
    """
    spoken = tuple(_spoken(message) for message in messages)
    return spoken if any(message.role == "user" for message in spoken) else messages


def _spoken(message: Message) -> Message:
    """The message, of the role of who speaks in it."""
    if message.role != "user":
        return message
    content = message.content.strip()  # a pattern's \s* would step through every blank, forth and back
    if _TOOL.match(content) and not any(tag in content for tag in _PERSON_TAGS):
        return replace(message, role="tool")
    # With words of the person behind it such a message ends in these, not in a tag.
    if _INTERRUPTED.fullmatch(content) or (_PROJECT.match(content) and content.endswith(">")):
        return replace(message, role="system")
    return message


def without_blocks(text: str, *, cut_at_end: bool = False, cut_at_start: bool = False) -> str:
    """`text` without closed harness blocks, and without the half of a block that a cut at an end left; linear time."""
    if "<" not in text:
        return text
    for name in _QUERY_TAGS:
        if f"<{name}>" in text and f"</{name}>" in text:
            text = text.replace(f"<{name}>", "").replace(f"</{name}>", "")
    found = ((tag, tag[2].lower()) for tag in _TAG.finditer(text))
    tags = [(tag, name) for tag, name in found if name in _TAGS or tag[2] in _CAMEL_TAGS]
    next_close: list[int | None] = [None] * len(tags)
    nearest: dict[str, int] = {}
    for i in range(len(tags) - 1, -1, -1):
        tag, name = tags[i]
        if tag[1]:
            nearest[name] = i
        else:
            next_close[i] = nearest.get(name)
    kept: list[str] = []
    start = i = 0
    if cut_at_start and tags and tags[0][0][1]:
        start, i = tags[0][0].end(), 1
    while i < len(tags):
        tag, close = tags[i][0], next_close[i]
        if tag[1] or (close is None and not cut_at_end):
            i += 1
            continue
        kept.append(text[start : tag.start()])
        if close is None:
            return "".join(kept)
        start, i = tags[close][0].end(), close + 1
    kept.append(text[start:])
    return "".join(kept)
