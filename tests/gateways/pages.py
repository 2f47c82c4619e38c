"""Runs what a page says: writes its files, starts its processes, and asks what it asks.

<!-- test: file NAME -->  the block below is a file        <!-- test: starts -->  processes in the background
<!-- test: more NAME -->  and this goes to its end         <!-- test: runs -->    asks them; ends well
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.gateways.support import ROOT, clean_environment

needs_its_commands = pytest.mark.skipif(
    not (shutil.which("curl") and shutil.which("openssl")), reason="needs curl, openssl"
)
WAIT = """
for port in {ports}; do
    until (exec 3<>/dev/tcp/127.0.0.1/$port) 2>/dev/null; do
        [ "$(jobs -r | wc -l)" = {processes} ] || {{ echo "a process ended before it listened"; exit 1; }}
        sleep 0.1
    done
done
"""


class Page:
    """A page of docs/gateways, with what stands for its addresses here.

    Args:
        name: file name.
        folder: where its files are written and its commands run.
        here: what is written in place of a text of the page, such as an address that is taken on this machine.
    """

    def __init__(self, name: str, folder: Path, here: Mapping[str, str]) -> None:
        text = (ROOT / "docs" / "gateways" / name).read_text(encoding="utf-8")
        self.folder, self._here = folder, here
        self._blocks = re.findall(r"<!-- test: (\w+) ?(\S*) -->\n```\w+\n(.*?)```", text, re.DOTALL)
        for kind, file, block in self._blocks:
            if kind in {"file", "more"}:
                with (folder / file).open("w" if kind == "file" else "a") as out:
                    out.write(self.adapted(block))

    def adapted(self, text: str) -> str:
        """The text with the addresses of here."""
        for there, here in self._here.items():
            text = text.replace(there, here)
        return text

    def _of(self, kind: str) -> str:
        return self.adapted("".join(block for found, _, block in self._blocks if found == kind))

    def run(self, ports: Sequence[int], more: str = "", **environment: str) -> str:
        """Starts the page's processes, waits for their ports, and returns what its commands print.

        A classification has a deadline, which a busy machine may miss: the commands are run until one was in time.
        """
        starts = self._of("starts")
        waits = WAIT.format(ports=" ".join(map(str, ports)), processes=starts.count("&\n"))
        script = [
            "trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT",
            starts,
            waits,
            f"page() {{\n{self._of('runs')}\n}}",
            'until out="$(page)" && grep -q decision-id <<<"$out"; do sleep 0.1; done',
            'echo "$out"',
            more,
        ]
        path = f"{Path(sys.executable).parent}:{clean_environment()['PATH']}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", "\n".join(script)],
            cwd=self.folder,
            env=clean_environment(PATH=path, **environment),
            capture_output=True,
            text=True,
            timeout=450,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
        return done.stdout
