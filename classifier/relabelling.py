"""Applies another policy of the same bundle to a labelled output, from its stored probabilities: no model runs.

Tier and reason of every row are decided anew, as the service would; everything else stays as it is. The file is
replaced whole or not at all, and its manifest says the new policy.

Knows nothing of engines.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import IO, Any

from classifier.arrow import pyarrow
from classifier.durable import explained, whole_file, write_whole
from classifier.errors import InputError, SettingsError
from classifier.labelled import Labelled, open_labelled, opened_rows, restored, undamaged, with_facts
from classifier.policy import Policy, decide
from classifier.run_manifest import manifest_bytes, manifest_path, read_manifest
from classifier.texts import csv_lines, json_text
from classifier.types import MAX_LABEL_CHARS

Decide = Callable[[list[float], str], tuple[str, str]]


def relabel(
    path: str | Path, policy: Policy, facts: Mapping[str, str], output: str | Path | None = None
) -> Counter[str]:
    """Writes the labelled file anew under `policy`; returns how many rows have which tier.

    Args:
        path: a labelled .parquet, .jsonl or .csv file.
        policy: of the bundle that labelled it.
        facts: of that bundle and policy, as `Identity.facts` has them.
        output: where to; None means in place.

    Raises:
        InputError: it is no labelled file, damaged or not complete, or the output is there.
        SettingsError: another bundle labelled it, or the policy needs what is not in the file.
    """
    path, output = Path(path), Path(output or path)
    labelled = open_labelled(path)
    _check(labelled, policy, facts, path, output)
    manifest = _complete_manifest(path)
    before = _metadata(labelled, facts)
    tiers: Counter[str] = Counter()
    with explained(output):
        with whole_file(output) as file, undamaged(path):
            _WRITERS[labelled.kind](path, file, _decider(policy, tiers), policy.group_by, before)
        if manifest is not None:
            changed = {**manifest, "facts": before, "complete": {**manifest["complete"], "tiers": tiers}}
            write_whole(manifest_path(output), manifest_bytes(changed))
    return tiers


def _check(labelled: Labelled, policy: Policy, facts: Mapping[str, str], path: Path, output: Path) -> None:
    for name in ("bundle_version", "calibration_revision"):
        found, wanted = labelled.facts.get(name), facts[f"classifier_{name}"]
        if found != wanted:
            raise SettingsError(
                f"{path}: was labelled by {name.replace('_', ' ')} {found}, and the policy belongs to {wanted}; "
                "thresholds mean nothing elsewhere: give that bundle with --bundle, or label again"
            )
    if policy.group_by == "script":  # of the text, whatever column has that name
        raise SettingsError(f"policy: {policy.name} groups by script, which the text alone tells; label again instead")
    if policy.group_by and policy.group_by not in labelled.names:
        raise SettingsError(
            f"policy: {policy.name} groups by {policy.group_by}, which is no column of {path}; label again instead"
        )
    if path.is_dir():
        raise InputError(f"{path}: is a folder; relabel its files one by one")
    if output != path and output.exists():
        raise InputError(f"{output}: exists already; choose another name")
    if output.suffix != path.suffix:
        raise InputError(f"{output}: expected a name that ends in {path.suffix}, as {path.name} does")


def _complete_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of a file that is complete; None where there is none, as of a part of a cluster's run."""
    manifest = read_manifest(manifest_path(path))
    if manifest is not None and manifest.get("complete") is None:
        raise InputError(
            f"{path}: its manifest does not say that it is complete; run the 'classifier label' that made it again"
        )
    return manifest


def _metadata(labelled: Labelled, facts: Mapping[str, str]) -> dict[str, str]:
    """The file's facts with the new policy in them."""
    changed = {f"classifier_{name}": value for name, value in labelled.facts.items()}
    return changed | {name: facts[name] for name in ("classifier_policy", "classifier_policy_definition")}


def _decider(policy: Policy, tiers: Counter[str]) -> Decide:
    def again(probabilities: list[float], group: str) -> tuple[str, str]:
        decision = decide(probabilities, policy, group=group)
        tiers[decision.tier.label] += 1
        return decision.tier.label, decision.reason.label

    return again


def _decided(row: dict[str, Any], again: Decide, group_by: str) -> dict[str, Any]:
    """Tier and reason of a row that has probabilities; nothing for a bad one."""
    probabilities = row.get("classifier_probabilities")
    if not probabilities:
        return {}
    if isinstance(probabilities, str):
        probabilities = json.loads(probabilities)
    group = restored(row).get(group_by) if group_by else None
    tier, reason = again(probabilities, "" if group is None else str(group)[:MAX_LABEL_CHARS])
    return {"classifier_tier": tier, "classifier_reason": reason}


def _write_parquet(path: Path, file: IO[bytes], again: Decide, group_by: str, facts: Mapping[str, str]) -> None:
    pa, pq = pyarrow()
    with path.open("rb") as raw, pq.ParquetFile(raw, pre_buffer=False) as source:
        schema = with_facts(source.schema_arrow, facts)
        needed = ("classifier_probabilities", "classifier_error", "classifier_extra", group_by)
        wanted = [name for name in needed if name in schema.names]
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for i in range(source.num_row_groups):
                table = source.read_row_group(i, use_threads=False)
                rows = chain.from_iterable(map(opened_rows, table.select(wanted).to_batches()))
                found = [_decided(row, again, group_by) for row in rows]
                for name in ("classifier_tier", "classifier_reason"):
                    values = pa.array([row.get(name) for row in found], pa.string())
                    table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), values)
                writer.write_table(table.cast(schema), row_group_size=max(1, table.num_rows))


def _write_lines(path: Path, file: IO[bytes], again: Decide, group_by: str, facts: Mapping[str, str]) -> None:
    del facts  # in the manifest
    with path.open("rb") as source:
        for line in source:
            row = json.loads(line)
            file.write(json_text({**row, **_decided(row, again, group_by)}).encode() + b"\n")


def _write_csv(path: Path, file: IO[bytes], again: Decide, group_by: str, facts: Mapping[str, str]) -> None:
    del facts  # in the manifest
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8", newline="") as source:
        reader = csv.reader(source)
        names = next(reader)
        file.write(csv_lines([names]))
        for fields in reader:
            row = dict(zip(names, fields, strict=True))
            extra = json.loads(row["classifier_extra"] or "null")
            decided = _decided({**row, "classifier_error": None, "classifier_extra": extra}, again, group_by)
            file.write(csv_lines([list({**row, **decided}.values())]))


_WRITERS: Mapping[str, Callable[[Path, IO[bytes], Decide, str, Mapping[str, str]], None]] = {
    "parquet": _write_parquet,
    "jsonl": _write_lines,
    "csv": _write_csv,
}
