"""Fixtures for the tests of the registry: bundles to store, and a new registry.

In a folder, in memory, and with `make test-s3` on two S3 servers.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import fsspec
import pytest

from classifier.bundle import read_bundle
from classifier.registry import Registry
from tests import s3_support
from tests.feedback_support import quick_folder
from tests.registry.support import numbers
from tests.tiny import tiny_bundle


@pytest.fixture(scope="session")
def bundles(tmp_path_factory) -> list[Path]:
    """Three bundles of different versions."""
    folder = tmp_path_factory.mktemp("bundles")
    return [tiny_bundle(folder / f"b{n}", scale=5.0 + n).path for n in range(3)]


@pytest.fixture(scope="session")
def versions(bundles) -> list[str]:
    """Their versions."""
    return [read_bundle(path).version for path in bundles]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """Weights as retraining keeps them."""
    folder = tmp_path_factory.mktemp("checkpoint")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 8)
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture(scope="session")
def seaweedfs():
    """An S3 server."""
    with s3_support.running("seaweedfs") as server:
        yield server


@pytest.fixture(scope="session")
def moto():
    """An S3 server that words its errors as AWS does."""
    with s3_support.running("moto") as server:
        yield server


@pytest.fixture(params=["folder", "memory", *s3_support.installed()])
def url(request, monkeypatch):
    """A new registry's URL."""
    if request.param == "memory":
        yield f"memory://registry-{next(numbers)}"
        return
    if request.param != "folder":
        server = request.getfixturevalue(request.param)
        monkeypatch.setitem(fsspec.config.conf, "s3", server.options)
        yield f"s3://{s3_support.BUCKET}/registry-{next(numbers)}"
        return
    folder = quick_folder("classifier-registry-")
    yield str(folder / "registry")
    shutil.rmtree(folder)


@pytest.fixture
def registry(url, tmp_path):
    """A new registry."""
    return Registry(url, cache=tmp_path / "cache", by="tester")
