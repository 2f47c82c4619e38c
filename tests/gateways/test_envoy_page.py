"""docs/gateways/envoy.md and envoy.json: their files and commands, as they stand."""

from __future__ import annotations

from pathlib import Path

from tests.gateways.pages import Page, needs_its_commands
from tests.gateways.support import ROOT, Upstream, free_port


@needs_its_commands
def test_the_page_runs(tmp_path: Path) -> None:
    """Envoy routes as the page says, with the configuration beside it."""
    upstream, classifier, processor, envoy = Upstream(), free_port(), free_port(), free_port()
    here = {
        "127.0.0.1:50051": f"127.0.0.1:{classifier}",
        "classifier serve": f"classifier serve --listen 127.0.0.1:{classifier}",
        "127.0.0.1:50061": f"127.0.0.1:{processor}",
        "127.0.0.1:10000": f"127.0.0.1:{envoy}",
        '"port_value": 10000': f'"port_value": {envoy}',
        '"port_value": 50061': f'"port_value": {processor}',
        '"address": "small.internal", "port_value": 8000': f'"address": "127.0.0.1", "port_value": {upstream.port}',
        '"address": "large.internal", "port_value": 8000': f'"address": "127.0.0.1", "port_value": {upstream.port}',
        "envoy -c": "envoy --disable-hot-restart -c",  # another Envoy may run on this machine
    }
    page = Page("envoy.md", tmp_path, here)
    text = (ROOT / "docs" / "gateways" / "envoy.json").read_text()
    assert all(there in text for there in list(here)[4:8])
    (tmp_path / "envoy.json").write_text(page.adapted(text))
    found = page.run([classifier, processor, envoy])
    upstream.close()
    assert "x-classifier-tier: simple" in found
    assert upstream.seen[-1]["headers"]["x-ai-eg-model"] == "small"
