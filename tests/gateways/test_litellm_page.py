"""docs/gateways/litellm.md: its files and commands, as they stand."""

from __future__ import annotations

from pathlib import Path

from tests.gateways.litellm_proxy import LITELLM_ENVIRONMENT
from tests.gateways.pages import Page, needs_its_commands
from tests.gateways.support import Upstream, free_port

BY_COMPLEXITY = """
curl -s --fail-with-body http://127.0.0.1:4000/v1/chat/completions -H "Authorization: Bearer $LITELLM_MASTER_KEY" \\
    -H 'Content-Type: application/json' -d '{"model": "by-complexity", "messages": [{"role": "user", "content": "hi"}]}'
"""


@needs_its_commands
def test_the_page_runs(tmp_path: Path) -> None:
    """The hook routes as the page says, and its complexity router starts and answers."""
    upstream, classifier, proxy = Upstream(), free_port(), free_port()
    here = {
        "127.0.0.1:8000": f"127.0.0.1:{upstream.port}",
        "127.0.0.1:50051": f"127.0.0.1:{classifier}",
        "classifier serve": f"classifier serve --listen 127.0.0.1:{classifier}",
        "127.0.0.1:4000": f"127.0.0.1:{proxy}",
        "--port 4000": f"--port {proxy}",
    }
    page = Page("litellm.md", tmp_path, here)
    found = page.run([classifier, proxy], page.adapted(BY_COMPLEXITY), **LITELLM_ENVIRONMENT)
    upstream.close()
    assert "x-classifier-tier: simple" in found
    assert "x-classifier-decision-id: " in found
    assert '"object":"chat.completion"' in found.replace(" ", "")
    assert (tmp_path / "feedback.db").exists()
    assert upstream.models()[-2] == "small"
