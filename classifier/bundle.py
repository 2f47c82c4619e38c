"""The artefact on disk: a Hugging Face model directory with a manifest.

Layout (`FILES`): the model's `config.json`, `tokenizer.json`, `tokenizer_config.json`, `model.onnx`; our
`calibration.json`, `policy.json`, `reference.json`; `README.md`, the model card; and `manifest.json` with the schema
version, the sha256 of every other file, the version (a hash over those), parent, recipe, data hashes, seed, metrics and
the golden inputs. Written into a temporary folder beside the target and renamed: a reader sees a whole bundle or none.
Every checksum is verified before anything is built from a file, and nothing is ever unpickled.

Knows nothing of sessions, tokenisers or requests.
"""

from __future__ import annotations

import hashlib
import json
import os
import reprlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from classifier.calibration import Calibration
from classifier.checksums import sha256, verify
from classifier.drift import check_reference
from classifier.durable import explained, fsync, staged_folder
from classifier.errors import BundleCorrupt, BundleError, BundleNotFound
from classifier.policy import Policy
from classifier.policy_file import policies_from_json

SCHEMA_VERSION = 1
FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "model.onnx",
    "calibration.json",
    "policy.json",
    "reference.json",
    "README.md",
)
MANIFEST = "manifest.json"
SHIPPED = Path(__file__).parent / "shipped"
"""The bundle that comes with the package."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle; its big files stay on disk until something is built from them.

    Attributes:
        path: the folder.
        version: 16 hexadecimal digits, a hash of the content.
        config: the model's configuration.
        calibration: logits → probabilities.
        policies: by name.
        default_policy: name of the policy used where a request names none.
        reference: distributions that drift is measured against.
        manifest: everything in `manifest.json`.
    """

    path: Path
    version: str
    config: Mapping[str, Any]
    calibration: Calibration
    policies: Mapping[str, Policy]
    default_policy: str
    reference: Mapping[str, Any]
    manifest: Mapping[str, Any]


def is_folder(name: str) -> bool:
    """Whether a bundle's name means a folder: a bare word is a name in the registry, whatever lies in this folder.

    >>> [is_folder(name) for name in ("./current", "/srv/bundle", "..", "current", "0123456789abcdef")]
    [True, True, True, False, False]
    """
    return name in (".", "..") or "/" in name or os.sep in name


def read_bundle(path: str | Path) -> Bundle:
    """The bundle in folder `path`, every checksum verified.

    Raises:
        BundleNotFound: there is no bundle there.
        BundleCorrupt: a file is missing, altered, of another schema, or does not belong to the others.
    """
    path = Path(path)
    try:
        there = (path / MANIFEST).is_file()
    except OSError as error:
        raise BundleNotFound(f"{path}: cannot be read ({error.strerror}); check the path and the rights") from error
    if not there:
        raise BundleNotFound(f"{path}: no {MANIFEST} there; give the folder of a bundle")
    manifest = _json(path, MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("schema_version") != SCHEMA_VERSION:
        found = manifest.get("schema_version") if isinstance(manifest, dict) else type(manifest).__name__
        raise BundleCorrupt(
            f"{path}: {MANIFEST} has schema version {reprlib.repr(found)}, this package reads "
            f"{SCHEMA_VERSION}; export the bundle again with this package's training tool"
        )
    stated = manifest.get("files")
    if not isinstance(stated, dict) or set(stated) != set(FILES):
        raise BundleCorrupt(f"{path}: {MANIFEST} does not list exactly {', '.join(FILES)}; export the bundle again")
    files = {name: str(stated[name]) for name in FILES}
    verify(path, files, stated_in="manifest", advice="copy or export the bundle again")
    if manifest.get("version") != content_version(stated):
        raise BundleCorrupt(
            f"{path}: version {reprlib.repr(manifest.get('version'))} is not the hash of its files; export it again"
        )
    config, reference = _object(path, "config.json"), _object(path, "reference.json")
    try:
        check_reference(reference)
    except ValueError as error:
        raise BundleCorrupt(f"{path}: reference.json is malformed ({error}); export it again") from error
    try:
        calibration = Calibration.from_json(_json(path, "calibration.json"))
        policies, default = policies_from_json(
            _json(path, "policy.json"),
            model_sha256=str(stated["model.onnx"]),
            calibration_revision=calibration.revision,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BundleCorrupt(
            f"{path}: calibration.json or policy.json is malformed ({error}); recalibrate it"
        ) from error
    return Bundle(
        path=path,
        version=str(manifest["version"]),
        config=config,
        calibration=calibration,
        policies=policies,
        default_policy=default,
        reference=reference,
        manifest=manifest,
    )


def write_bundle(
    path: str | Path,
    source: str | Path,
    manifest: Mapping[str, Any],
    changed: Mapping[str, str | Mapping[str, Any]] | None = None,
) -> Bundle:
    """Makes a bundle in the new folder `path` from the files in `source`, all at once or not at all.

    Args:
        path: the folder to make; it must not exist.
        source: a folder with every name in `FILES` that is not `changed`; others are left behind.
        manifest: everything but `schema_version`, `files` and `version`, which are filled in.
        changed: name → what the file holds instead: its text, or what is written as JSON.

    Raises:
        BundleError: `path` exists, or a file is missing in `source`.
        InputError: it cannot be written there.
    """
    path, source, changed = Path(path), Path(source), changed or {}
    check_new(path)
    missing = [name for name in FILES if name not in changed and not (source / name).is_file()]
    if missing:
        raise BundleError(f"{source}: lacks {', '.join(missing)}; a bundle needs them all")
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with staged_folder(path) as staging:
            for name in FILES:
                if name not in changed:
                    shutil.copyfile(source / name, staging / name)
                    continue
                content = changed[name]
                text = content if isinstance(content, str) else json.dumps(content, indent=1) + "\n"
                (staging / name).write_text(text, encoding="utf-8")
            files = {name: sha256(staging / name) for name in FILES}
            whole = {
                "schema_version": SCHEMA_VERSION,
                "version": content_version(files),
                "files": files,
                **{k: v for k, v in manifest.items() if k not in ("schema_version", "version", "files")},
            }
            (staging / MANIFEST).write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            bundle = read_bundle(staging)
            for name in (*FILES, MANIFEST):
                fsync(staging / name)
            staging.chmod(0o755)
            staging.rename(path)
            fsync(path.parent)
    return replace(bundle, path=path)


def check_new(path: Path) -> None:
    """Refuses a folder for a bundle that is there already or cannot be made: before work is spent on it.

    Raises:
        BundleError: the message says which, and what to do.
    """
    if path.exists():
        raise BundleError(f"{path}: already exists; bundles are never overwritten, choose another folder")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
        raise BundleError(f"{path}: no folder can be made in {above}; choose another place, or check the rights")


def input_mismatch(bundle: Bundle) -> str:
    """Why this package does not serve a bundle, and what to do: it was made for another `INPUT_VERSION`; else empty."""
    from classifier.inputs import INPUT_VERSION  # here: it reads a list of words, which takes longer than all else

    if (version := bundle.manifest.get("input_version")) == INPUT_VERSION:
        return ""
    return (
        f"{bundle.path}: made for input version {reprlib.repr(version)}, this package makes {INPUT_VERSION}; take the "
        f"bundle that ships with this package ({SHIPPED}), recalibrate this one (python -m training calibrate), or use "
        "the package that made it"
    )


def content_version(files: Mapping[str, str]) -> str:
    """The version of a bundle: 16 hexadecimal digits over the names and hashes of its files."""
    listing = "".join(f"{name}:{files[name]}\n" for name in sorted(files))
    return hashlib.sha256(listing.encode()).hexdigest()[:16]


def _object(path: Path, name: str) -> dict[str, Any]:
    found = _json(path, name)
    if not isinstance(found, dict):
        raise BundleCorrupt(f"{path}: {name} holds a {type(found).__name__}, expected an object; export it again")
    return found


def _json(path: Path, name: str) -> Any:
    try:
        return json.loads((path / name).read_text(encoding="utf-8"), parse_int=_whole)
    except OSError as error:
        raise BundleCorrupt(f"{path}: {name} cannot be read ({error.strerror}); check the rights") from error
    except (ValueError, RecursionError) as error:
        raise BundleCorrupt(f"{path}: {name} is not readable JSON ({type(error).__name__}); export it again") from error
    except OverflowError as error:
        raise BundleCorrupt(f"{path}: {name} holds a number that is too large; export it again") from error


def _whole(digits: str) -> int:
    """A whole number that a float can hold, so that no sum over a bundle's numbers overflows; else OverflowError."""
    number = int(digits)
    float(number)
    return number
