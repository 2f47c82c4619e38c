"""What tests of bulk labelling share: rows, makers of fake answers, processes."""

from __future__ import annotations

import json
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

from fsspec.implementations.memory import MemoryFileSystem

from classifier.answering import Identity, identity_of
from classifier.bulk import label
from classifier.labelled import open_labelled
from classifier.labelling import EngineAnswerer
from classifier.runs import Options
from classifier.testing import FAKE_POLICY, FakeEngine
from classifier.types import Tier

WORDS = ["hi", "explain the sql", "debug the contract", "prove the theorem"]


def prompts(count: int) -> list[str]:
    """Prompts that are all different, of all tiers."""
    return [f"{WORDS[i % 4]} {i}" for i in range(count)]


def write_lines(path: Path, rows) -> Path:
    """A file of JSON lines: bytes stand as they are."""
    lines = (row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def tier_of(request) -> Tier:
    """The tier that a prompt's first word asks for."""
    return next(
        (tier for tier, word in zip(Tier, WORDS, strict=True) if request.messages[-1].content.startswith(word)),
        Tier.STANDARD,
    )


@dataclass(frozen=True)
class FakeMaker:
    """Makes fake answers in each process; it travels there, so it holds no function."""

    version: str = "fake000000000000"
    delay_seconds: float = 0.0

    def identity(self, policy: str) -> Identity:
        del policy
        return identity_of(self.version, "fake", FAKE_POLICY)

    def __call__(self) -> EngineAnswerer:
        return EngineAnswerer(
            FakeEngine(tier_of=tier_of, bundle_version=self.version, delay_seconds=self.delay_seconds)
        )


def labelled(path: Path, tmp_path: Path, **options):
    """(errors, tally) of labelling one file in this process."""
    out = tmp_path / f"{path.name}.jsonl"
    tally = label([str(path)], str(out), FakeMaker(), Options(processes=1, **options)).tally
    return [row["classifier_error"] for row in open_labelled(out).rows()], tally


class Disks(MemoryFileSystem):
    """Disks of a host, to which its URLs give a password; paths there do not name the host, as FTP's do not."""

    protocol = "disks"

    def __init__(self, host="", password="", **options):
        if (host, password) != ("nas", "secret"):
            raise OSError("the password is wrong")
        super().__init__(**options)

    @classmethod
    def _strip_protocol(cls, path):
        below = path.partition("://")[2].partition("/")[2] if "://" in path else path
        return f"/{below.strip('/')}".rstrip("/")

    @staticmethod
    def _get_kwargs_from_urls(path):
        parts = urllib.parse.urlsplit(path)
        return {"host": parts.hostname, "password": parts.password}
