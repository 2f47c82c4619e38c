"""The logs of `tests/logs`: what is read of each, and what is said of its broken twin."""

from __future__ import annotations

import json
from pathlib import Path

from classifier.readers import read_chunks
from classifier.sources import find_sources
from classifier.types import Request

LOGS = Path(__file__).parent / "logs"
TIDE = '{"call":"get_tide","args":{"port":"Bergen"}}'
HERON = [
    ("system", "You see."),
    ("user", "What is this?"),
    ("assistant", '{"call":"zoom","args":{"x":2}}'),
    ("tool", "a heron"),
    ("user", "And its age?"),
]
CALL = '{"call":"get_weather","args":{"city":"Oslo"}}'


def rows_of(name, row_format="auto"):
    """The parsed rows of a fixture, an OTLP export's spans one by one."""
    [source] = find_sources([str(LOGS / name)])
    payloads = [row.payload for chunk in read_chunks([source], row_format=row_format) for row in chunk.rows]
    return [json.loads(payload) if isinstance(payload, bytes) else payload for payload in payloads]


def told(request: Request):
    """What a request holds, to compare: roles with contents, tools, attachments."""
    return [(m.role, m.content) for m in request.messages], request.tools, request.attachments


READ = {
    "openai_chat.jsonl": [
        ([("developer", "You are a helpful assistant."), ("user", "Hello!")], (), 0),
        ([("user", "What's in these images?")], (), 3),
        (
            [
                ("user", "What is the weather in Oslo?"),
                ("assistant", CALL),
                ("tool", "4 degrees, rain"),
                ("user", "And tomorrow?"),
            ],
            ("get_weather",),
            0,
        ),
    ],
    "openai_batch.jsonl": [
        ([("system", "You are terse."), ("user", "Name three rivers.")], (), 0),
        (
            [
                ("system", "Answer in French."),
                ("user", "Describe this."),
                ("assistant", '{"call":"lookup","args":{"q":"seine"}}'),
                ("tool", "a river"),
            ],
            ("lookup", "web_search"),
            1,
        ),
        ([("user", "Tell me a story.")], (), 0),
    ],
    "openai_langchain.jsonl": [
        (
            [
                ("system", "You know the sea."),
                ("user", "When is high tide?"),
                ("assistant", f"\n{TIDE}"),
                ("tool", "at noon"),
            ],
            (),
            0,
        ),
        ([("user", "And here?"), ("assistant", f"I look.\n{TIDE}"), ("tool", "at one")], (), 1),
        ([("user", "thanks")], (), 0),
        ([("user", "Name a river.")], (), 0),
        ([("system", "Be kind."), ("user", "good morning")], (), 0),
    ],
    "openai_gateways.jsonl": [
        ([("system", "Be brief."), ("user", "Why is the sky blue?")], ("look",), 0),
        ([("system", "Be brief."), ("user", "Why is the sky blue?")], ("look",), 0),
        ([("user", "Why is grass green?")], (), 0),
        ([("system", "Be brief."), ("user", "Why is the sky blue?")], ("look",), 0),
    ],
    "anthropic.jsonl": [
        ([("system", "You review code."), ("user", "Is this function safe?")], (), 0),
        ([("system", "Be brief."), ("user", "Compare the two.")], (), 2),
        (
            [
                ("system", "You are an agent."),
                ("user", "Find the failing test."),
                ("assistant", 'I will look.\n{"call":"bash","args":{"command":"pytest -x"}}'),
                ("tool", "1 failed"),
                ("user", "Now fix it."),
                ("assistant", '{"call":"bash","args":{"command":"git diff"}}'),
                ("tool", "no changes"),
            ],
            ("bash", "web_search"),
            0,
        ),
    ],
    "anthropic_batch.jsonl": [
        ([("user", "Hello, world")], (), 0),
        ([("system", "Be kind."), ("user", "Hi again,\nfriend")], (), 0),
    ],
    "litellm.jsonl": [
        ([("system", "Be brief."), ("user", "Weather in Oslo?")], ("get_weather",), 0),
        ([("user", "Once upon a time")], (), 0),
        ([("user", "What is this?")], (), 1),
        ([("user", "From the spend log")], (), 0),
    ],
    "otel_collector.jsonl": [
        (
            [
                ("system", "You are a weather bot."),
                ("user", "Weather in Paris?"),
                ("assistant", '{"call":"get_weather","args":{"location":"Paris"}}'),
                ("tool", "rainy, 57°F"),
            ],
            ("get_weather",),
            1,
        ),
        ([("system", "Be brief."), ("user", "Name a river.")], (), 0),
        (
            [
                ("system", "You sort mail."),
                ("user", "Is this spam?"),
                ("assistant", '{"call":"open","args":{"id":1}}'),
                ("user", "And this?"),
            ],
            ("open",),
            0,
        ),
    ],
    "otel_console.jsonl": [([("user", "Hello there")], (), 0)],
    "otel_openinference.jsonl": [
        (HERON, ("zoom", "crop"), 1),
        (HERON, ("zoom", "crop"), 1),
        ([("user", "Sort these."), ("assistant", '{"call":"sort","args":[]}'), ("tool", "sorted")], (), 0),
        (
            [
                ("user", "Name a lake."),
                ("assistant", '{"call":"search","args":{}}'),
                ("tool", "none"),
                ("user", "Another."),
            ],
            (),
            1,
        ),
        ([("user", "Name a hill.")], ("look",), 0),
    ],
    "gemini.jsonl": [
        (
            [
                ("system", "You date photographs.\nBe brief."),
                ("user", "Which of the two photographs is older?"),
            ],
            (),
            2,
        ),
        (
            [
                ("user", "Turn the heating down."),
                ("assistant", '{"call":"get_heating","args":{"room":"hall"}}'),
                ("tool", '{"celsius": 23}'),
            ],
            ("get_heating", "set_heating", "googleSearch"),
            0,
        ),
        ([("system", "Be kind."), ("user", "Rewrite this letter.")], (), 0),
        ([("system", "You are terse."), ("user", "Name three rivers.")], (), 0),
        (
            [
                ("user", "Sum the primes below 100."),
                ("assistant", '{"call":"code_execution","args":{"language":"PYTHON","code":"print(1060)"}}'),
                ("tool", "1060\n"),
                ("assistant", "1060."),
                ("user", "And below 200?"),
            ],
            ("codeExecution",),
            0,
        ),
    ],
    "bedrock.jsonl": [
        ([("system", "You read contracts."), ("user", "Does the contract allow subletting?")], (), 1),
        (
            [
                ("user", "How full is the tank?"),
                ("assistant", 'I will look.\n{"call":"read_sensor","args":{"id":"tank"}}'),
                ("tool", '{"litres": 40}\nas of now'),
            ],
            ("read_sensor",),
            0,
        ),
        ([("user", "Translate the menu.")], (), 0),
        ([("system", "Be kind."), ("user", "What is this?")], ("zoom",), 1),
    ],
    "corpus.jsonl": [
        ([("user", "What is the capital of Australia?")], (), 0),
        (
            [
                ("user", "turn on the lamp"),
                ("assistant", '{"call":"set_light","args":{}}'),
                ("user", "all of them"),
            ],
            ("set_light",),
            1,
        ),
    ],
}
NAMED = {name: name for name in ("openai", "anthropic", "litellm", "otel", "corpus", "gemini", "bedrock")}


BROKEN = {
    "openai_chat_broken.jsonl": [
        "messages: is not there",
        "no message with role 'user'",
        "messages[1].role",
        "messages[0].content",
        "NUL byte",
    ],
    "openai_batch_broken.jsonl": [
        "body: is a text, and not of JSON",
        "model: is one of embeddings",
        "label the batch's input file",
        "is not JSON (Unterminated string",
    ],
    "openai_langchain_broken.jsonl": [
        "run_type: is 'chain', a step around requests",
        "messages: does not hold one request",
        "no message with role 'user'",
        "messages[0].content: is not there",
        "prompts: does not hold one request",
        "messages[0]: is not an object",
        "type: is 'SPAN', a step around requests",
    ],
    "openai_gateways_broken.jsonl": [
        "ai: has no payload.request",
        "model: is one of embeddings",
        "RequestMessages: is empty",
        "RequestMessages: is empty",
        "RequestMessages: may be a part of a request",
    ],
    "anthropic_broken.jsonl": [
        "messages[0].content[0]",
        "no message with role 'user'",
        "params: is not an object",
    ],
    "anthropic_batch_broken.jsonl": [
        "messages: is not there",
        "no message with role 'user'",
        "params: is a text, and not of JSON",
        "params: is not an object",
        "label the batch's input file",
        "is not JSON (Unterminated string",
    ],
    "litellm_broken.jsonl": ["redacted by LiteLLM", "call_type: is 'aembedding'", "messages: is not there"],
    "otel_collector_broken.jsonl": [
        "has no content; let the application record it",
        "gen_ai.input.messages: is not a list",
        "gen_ai.input.messages[0]",
        "is not JSON",
    ],
    "otel_console_broken.jsonl": [
        "has no content; let the application record it",
        "gen_ai.input.messages: is not a list of messages",
        "no message with role 'user'",
        "has no content; let the application record it",
        "has no content; let the application record it",
        "is not JSON (Expecting property name",
        "is not JSON (Extra data",
        "is not JSON (Extra data",
    ],
    "otel_openinference_broken.jsonl": [
        "openinference.span.kind: is 'AGENT'",
        "gen_ai.operation.name: is 'invoke_agent'",
        "has no content; let the application record it",
        "messages[0].role: is not one of",
        "has no content; let the application record it",
    ],
    "gemini_broken.jsonl": [
        "contents: is not there or not a list",
        "contents[0]: is not an object with role and parts",
        "contents[0].parts[1]: is not an object",
        "no message with role 'user'",
        "full_request: is a text, and not of JSON",
        "contents: is not there or not a list",
    ],
    "bedrock_broken.jsonl": [
        "input.inputBodyJson: has no messages",
        "lies at inputBodyS3Path",
        "messages[0].content[0]",
        "no message with role 'user'",
        "inputBodyJson: is a text, and not of JSON",
        "input: is a text, and not of JSON",
    ],
    "corpus_broken.jsonl": [
        "messages[0].content: is not a text",
        "messages[0].content: is not a text",
        "attachments: is negative",
        "tools: is not a list",
    ],
    "prompts_broken.csv": [
        "has 1 fields, the header has 2",
        "is not UTF-8; if the whole file is not, convert it, as with iconv -f CP1252 -t UTF-8",
        "has 4 fields, the header has 2",
        "has a quote that is not closed",
    ],
}
