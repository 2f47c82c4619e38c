"""The manifest of a labelling run: what its output is made of and by, and whether it is complete.

It is a file of JSON beside the output (`OUT.manifest.json`), or in the folder that a cluster writes. It holds the
`facts` of whom the answers are by, the `inputs`, the output's Arrow `schema`, and, once the output is `complete`, its
tally.

Knows nothing of pieces, rows or processes.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from classifier.arrow import pyarrow
from classifier.errors import InputError
from classifier.sources import MANIFEST_SUFFIX
from classifier.texts import parsed

CLUSTER_MANIFEST = "_manifest.json"
"""Manifest in the folder that a cluster writes."""


def manifest_path(path: str | Path) -> Path:
    """Where the manifest of an output is."""
    path = Path(path)
    return path.with_name(path.name + MANIFEST_SUFFIX)


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest; None where there is none.

    Raises:
        InputError: it cannot be read, or see `manifest_of`.
    """
    try:
        return manifest_of(path.read_bytes(), str(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the rights") from error


def manifest_of(data: bytes, name: str) -> dict[str, Any]:
    """The manifest that a file of that name holds.

    Raises:
        InputError: it is damaged, or another's.
    """
    found = parsed(data)
    if isinstance(found, dict) and isinstance(found.get("facts"), dict):
        complete = found.get("complete")
        if complete is None or isinstance(complete, dict):
            return found
    raise InputError(
        f"{name}: is no manifest of a labelled file; label into another output, or remove it and label anew"
    )


def begun_manifest(stated: Mapping[str, Any], schema: Any) -> dict[str, Any]:
    """The manifest of an output that is begun: what it is about, and its Arrow schema."""
    return {**stated, "schema": base64.b64encode(schema.serialize().to_pybytes()).decode(), "complete": None}


def schema_of(manifest: Mapping[str, Any]) -> Any:
    """The output's Arrow schema, as its manifest holds it."""
    pa, _ = pyarrow()
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(manifest["schema"])))


def check_same(output: str, found: Mapping[str, Any], stated: Mapping[str, Any]) -> None:
    """Refuses to go on with, or to write over, what was made by something else.

    Args:
        output: what is made.
        found: its manifest.
        stated: what the manifest of this run would say.

    Raises:
        InputError: they differ; every difference is named.
    """
    before, now = dict(found["facts"]), dict(stated["facts"])
    differences = [
        f"{name.removeprefix('classifier_').replace('_', ' ')} {before.get(name)}, now {now[name]}"
        for name in now
        if before.get(name) != now[name] and name != "classifier_policy_definition"
    ]
    if not differences and before != now:
        differences.append("another definition of the policy")
    if found.get("inputs") != stated["inputs"]:
        differences.append("other input files, or files that changed since")
    if found.get("chunks") != stated["chunks"]:
        differences.append("another version of this package, which reads the input otherwise")
    differences += [
        f"{name.replace('_', ' ')} {found.get(name)!r}, now {stated[name]!r}"
        for name in stated
        if name not in ("facts", "inputs", "chunks") and found.get(name) != stated[name]
    ]
    if differences:
        raise InputError(
            f"{output}: was begun with {'; '.join(differences)}; one output never mixes two: choose another file, or "
            f"remove {manifest_path(output).name}, {Path(output).name} and {Path(output).name}.parts to label anew"
        )


def manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    """The file of a manifest."""
    return json.dumps(manifest, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
