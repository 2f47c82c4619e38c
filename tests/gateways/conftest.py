"""Which gateway is installed here, and one proxy for all tests of LiteLLM: it takes long to start."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.gateways.litellm_proxy import Proxy

collect_ignore_glob = []
if importlib.util.find_spec("litellm") is None:
    collect_ignore_glob.append("test_litellm_*.py")  # run by `make test-litellm`
if importlib.util.find_spec("envoy") is None:
    collect_ignore_glob.append("test_envoy*.py")  # run by `make test-envoy`


@pytest.fixture(scope="session")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A running proxy; a test leaves it as it found it."""
    from tests.gateways.litellm_proxy import Proxy

    made = Proxy(tmp_path_factory.mktemp("proxy"))
    yield made
    made.stop()
