"""`classifier bundle`: which bundles there are, and which of them serves."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from classifier.cli._bundles import bundle_folder
from classifier.cli._json import answer, json_option
from classifier.settings import registry_url

if TYPE_CHECKING:
    from classifier.history import Event
    from classifier.registry import Registry


def _registry_option(function: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--registry",
        "url",
        callback=lambda _context, _option, value: registry_url(value),
        metavar="URL",
        help="Folder or fsspec URL. Default: as for `classifier serve`, else the user's own. [CLASSIFIER_REGISTRY]",
    )(function)


def _registry(url: str) -> Registry:
    from classifier.registry import Registry

    return Registry(url)


@click.group(name="bundle")
def command() -> None:
    r"""The registry of bundles: names, history, promotion.

    \b
    classifier bundle list
    classifier bundle promote candidate --why "beats current on the golden set"
    classifier bundle rollback --why "escalations doubled"
    """


@command.command(name="list")
@_registry_option
@click.option("--history", is_flag=True, help="Every change, oldest first, instead of what is there.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def list_(*, url: str, history: bool, as_json: bool) -> None:
    r"""Lists the versions with their aliases, or what happened.

    \b
    classifier bundle list
    classifier bundle list --history --json
    """
    registry = _registry(url)
    if history:
        for event in registry.history():
            facts = {"number": event.number, "at": event.at, "action": event.action, "version": event.version}
            facts |= {"by": event.by, "why": event.why, "aliases": event.aliases}
            told = f"{_on_a_line(event.by)}  {_on_a_line(event.why)}"
            line = f"{_time(event.at)}  {event.action:<8}  {event.version:<16}  {told}"
            click.echo(json.dumps(facts) if as_json else line.rstrip())
        return
    state = registry.state()
    if not state.folders:
        how = f"classifier bundle promote ./FOLDER --registry {registry.url}"
        click.echo(f"{registry.url}: holds no bundle; add one with '{how}'", err=True)
    for version in sorted(state.folders, key=lambda v: state.since.get(v, 0.0)):
        aliases = sorted(alias for alias, named in state.aliases.items() if named == version)
        since = state.since.get(version, 0.0)
        facts = {"version": version, "aliases": aliases, "since": since}
        click.echo(json.dumps(facts) if as_json else f"{version}  {_time(since)}  {', '.join(aliases)}".rstrip())


@command.command(name="verify")
@click.argument("name")
@_registry_option
@json_option
def verify(*, name: str, url: str, as_json: bool) -> None:
    r"""Checks every file of a bundle; exit code 1 if one is wrong.

    NAME is an alias, a version, or a folder (./NAME).

    \b
    classifier bundle verify current
    classifier bundle verify ./my-bundle
    """
    from classifier.bundle import read_bundle

    bundle = read_bundle(bundle_folder(name, url))
    facts = {"version": bundle.version, "path": str(bundle.path)}
    answer(facts, f"{bundle.version}  every file is what the manifest says  {bundle.path}", as_json=as_json)


@command.command(name="promote")
@click.argument("name")
@click.option("--why", default="", metavar="TEXT", help="Kept in the history.")
@click.option("--checkpoint", metavar="PATH", help="With a folder as NAME: weights to keep beside it, for retraining.")
@_registry_option
@json_option
def promote(*, name: str, why: str, checkpoint: str | None, url: str, as_json: bool) -> None:
    r"""Makes a bundle the current one.

    NAME is an alias, a version, or a folder (./NAME), which is added to the registry first. Servers that watch the
    registry load it within seconds.

    \b
    classifier bundle promote candidate --why "beats current on the golden set"
    classifier bundle promote ./my-bundle
    """
    from classifier.bundle import is_folder

    registry = _registry(url)
    if is_folder(name):
        name = registry.add(name, checkpoint=checkpoint, why=why)
    elif checkpoint:
        raise click.UsageError("--checkpoint goes with a bundle's folder as NAME")
    _warn(registry, name)
    _tell(registry.promote(name, why=why), as_json=as_json)


@command.command(name="rollback")
@click.option("--why", default="", metavar="TEXT", help="Kept in the history.")
@_registry_option
@json_option
def rollback(*, why: str, url: str, as_json: bool) -> None:
    r"""Makes the previous bundle current; a second time undoes it.

    \b
    classifier bundle rollback --why "escalations doubled"
    """
    registry = _registry(url)
    _warn(registry, "previous")
    _tell(registry.rollback(why=why), as_json=as_json)


@command.command(name="pull")
@click.argument("name")
@click.argument("target")
@_registry_option
@json_option
def pull(*, name: str, target: str, url: str, as_json: bool) -> None:
    r"""Copies a bundle, verified, into the new folder TARGET.

    \b
    classifier bundle pull current ./current --registry s3://models/classifier
    """
    path = str(_registry(url).pull(name, target))
    answer({"path": path}, path, as_json=as_json)


@command.command(name="gc")
@click.option("--older-than-days", default=30.0, show_default=True, metavar="DAYS", help="Time without an alias.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@_registry_option
@json_option
def gc(*, older_than_days: float, dry_run: bool, url: str, as_json: bool) -> None:
    r"""Removes versions that nothing has named for a while.

    Also what crashes left behind.

    \b
    classifier bundle gc --dry-run
    """
    removed = _registry(url).gc(older_than_days=older_than_days, dry_run=dry_run)
    answer({"removed": removed, "dry_run": dry_run}, "\n".join(removed), as_json=as_json)
    click.echo(f"{len(removed)} {'would be ' if dry_run else ''}removed", err=True)


def _warn(registry: Registry, name: str) -> None:
    """Warns of a bundle that is to serve and that servers of this package refuse."""
    from classifier.bundle import input_mismatch, read_bundle

    if mismatch := input_mismatch(read_bundle(registry.fetch(name))):
        click.echo(f"warning: servers of this package keep what they have and do not start anew: {mismatch}", err=True)


def _tell(event: Event, *, as_json: bool) -> None:
    """Which bundle serves now, and which one a rollback would bring back."""
    current, previous = event.aliases["current"], event.aliases.get("previous")
    text = f"current is {current}, previous is {previous or 'none'}"
    answer({"current": current, "previous": previous}, text, as_json=as_json)


def _on_a_line(text: str) -> str:
    """Free text without what would end its line or steer a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _time(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, tz=dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
