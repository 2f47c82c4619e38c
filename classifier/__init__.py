"""Tells an LLM gateway which tier of model a request needs.

The public names are loaded on first use, so that `import classifier` stays instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from classifier.client import AsyncClient, Client
    from classifier.engine import Engine
    from classifier.types import Decision, Message, Outcome, Request, Tier

__all__ = ["AsyncClient", "Client", "Decision", "Engine", "Message", "Outcome", "Request", "Tier", "__version__"]

_HOME = {
    "AsyncClient": "classifier.client",
    "Client": "classifier.client",
    "Engine": "classifier.engine",
    "Decision": "classifier.types",
    "Message": "classifier.types",
    "Outcome": "classifier.types",
    "Request": "classifier.types",
    "Tier": "classifier.types",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name == "__version__":
        from importlib.metadata import version

        found = globals()[name] = version("request-complexity-classifier")  # once: it parses a file for 0.4 ms
        return found
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'classifier' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
