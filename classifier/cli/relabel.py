"""`classifier relabel`: another policy for rows that are labelled."""

from __future__ import annotations

import json

import click

from classifier.cli._bundles import bundle_folder, bundle_option
from classifier.cli._json import json_option


@click.command(name="relabel")
@click.argument("path", metavar="OUT")
@click.option("--policy", required=True, metavar="NAME", help="Policy of the bundle that labelled the file.")
@click.option("-o", "--output", metavar="FILE", help="Where to, a name of the same kind. Default: in place.")
@bundle_option
@json_option
def command(*, path: str, policy: str, output: str | None, bundle: str | None, as_json: bool) -> None:
    r"""Applies another policy to OUT, as `classifier label` wrote it.

    The stored probabilities are enough: no model runs.

    \b
    classifier relabel labelled.parquet --policy economy
    classifier relabel labelled.parquet --policy quality -o quality.parquet
    """
    from classifier.answering import identity_of
    from classifier.bundle import read_bundle
    from classifier.errors import SettingsError
    from classifier.relabelling import relabel
    from classifier.types import TIERS

    read = read_bundle(bundle_folder(bundle))
    if policy not in read.policies:
        raise SettingsError(f"policy: expected one of {', '.join(sorted(read.policies))}, found {policy[:64]!r}")
    facts = identity_of(read.version, read.calibration.revision, read.policies[policy]).facts()
    tiers = relabel(path, read.policies[policy], facts, output)
    shares = {tier.label: tiers.get(tier.label, 0) for tier in TIERS}
    if as_json:
        click.echo(json.dumps({"output": output or path, "policy": policy, "tiers": shares}))
        return
    total = max(1, sum(shares.values()))
    click.echo(f"{output or path}: {sum(shares.values()):,} rows under policy {policy}")
    for tier, count in shares.items():
        click.echo(f"  {tier:<9} {count:>10,}  {count / total:6.1%}")
