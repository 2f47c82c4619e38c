"""The OpenAPI document as one self-contained page: no script, nothing fetched.

Knows nothing of the contract but what the document says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #8885; padding-bottom: .25rem; overflow-wrap: anywhere; }
h3 { margin-top: 1.75rem; }
code, pre { font: 14px/1.45 ui-monospace, monospace; }
pre { background: #8881; padding: .75rem; overflow-x: auto; border-radius: .25rem; }
.method { color: #fff; background: #24603f; padding: .1rem .4rem; border-radius: .2rem; font-size: .8em; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: .35rem .5rem; border-top: 1px solid #8883; }
td:first-child { white-space: nowrap; }
td:last-child { white-space: pre-line; overflow-wrap: anywhere; }
nav a { margin-right: 1rem; }
@media (max-width: 40rem) {
  table, tbody, tr, td { display: block; } thead { display: none; }
  tr { border-top: 1px solid #8885; padding: .4rem 0; } td { border: 0; padding: .05rem 0; }
}
"""


def page(document: Mapping[str, Any]) -> str:
    """The page of an OpenAPI document.

    Args:
        document: OpenAPI 3.1, parsed.
    """
    info, schemas = document["info"], document["components"]["schemas"]
    calls = [(path, method, call) for path, methods in document["paths"].items() for method, call in methods.items()]
    links = " ".join(f'<a href="#{escape(call["operationId"])}">{escape(path)}</a>' for path, _, call in calls)
    parts = [
        f"<h1>{escape(info['title'])}</h1>",
        f"<p>{escape(info['description'])} As a document for tools: <a href='/openapi.json'>/openapi.json</a>.</p>",
        "<p>Where the server asks for tokens, send <code>Authorization: Bearer TOKEN</code>. An error is a "
        '<a href="#Error">google.rpc.Status</a> with an HTTP status of its kind.</p>',
        f"<nav>{links}</nav>",
        *(_call(path, method, call) for path, method, call in calls),
        "<h2>Messages</h2>",
        *(_schema(name, schema) for name, schema in schemas.items()),
    ]
    title = f"{escape(info['title'])} {escape(info['version'])}"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>"
    )


def _call(path: str, method: str, call: Mapping[str, Any]) -> str:
    parts = [
        f'<h2 id="{escape(call["operationId"])}"><span class="method">{method.upper()}</span> '
        f"<code>{escape(path)}</code></h2><p>{escape(call['summary'])}</p>"
    ]
    command = f"curl http://127.0.0.1:8080{path}"
    if "requestBody" in call:
        content = call["requestBody"]["content"]["application/json"]
        parts.append(f"<p>Takes a {_type(content['schema'])}.</p>")
        body = json.dumps(content["example"])
        command = f"curl -H 'Content-Type: application/json' \\\n  -d '{body}' \\\n  http://127.0.0.1:8080{path}"
    parts.append(f'<pre tabindex="0">{escape(command)}</pre>')  # so that who has no mouse can scroll it, too
    rows = [
        (f"<code>{code}</code>", _type(said["content"]["application/json"]["schema"]), escape(said["description"]))
        for code, said in call["responses"].items()
    ]
    return "".join([*parts, _table(("status", "body", "meaning"), rows)])


def _schema(name: str, schema: Mapping[str, Any]) -> str:
    head = f'<h3 id="{escape(name)}">{escape(name)}</h3>'
    about = f"<p style='white-space: pre-line'>{escape(schema['description'])}</p>" if schema.get("description") else ""
    if "properties" not in schema:
        return f"{head}{about}<p>{_type(schema)}</p>"
    required = schema.get("required", ())
    rows = [
        (
            f"<code>{escape(field)}</code>",
            _type(said) + (", required" if field in required else ""),
            escape(said.get("description", "")),
        )
        for field, said in schema["properties"].items()
    ]
    return head + about + (_table(("field", "type", "meaning"), rows) if rows else "<p>Holds nothing.</p>")


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{title}</th>" for title in titles)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _type(schema: Mapping[str, Any]) -> str:
    """What a value is, in words, with a link where it is a message."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "enum" in schema:
        return "one of " + ", ".join(f"<code>{escape(str(value))}</code>" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    if isinstance(schema.get("additionalProperties"), Mapping):
        return f"object of {_type(schema['additionalProperties'])}"
    return escape(str(schema.get("format") or schema.get("type", "")))
