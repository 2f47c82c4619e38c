"""Templates to self-contained HTML pages: no script, no font and no image is fetched. The home of jinja2.

Every value is escaped. Knows nothing of what a page says.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from classifier.durable import explained, write_whole
from classifier.errors import MissingExtra, SettingsError


def render(template: str, folder: Path | None = None, **values: Any) -> str:
    """The page that a template makes.

    Args:
        template: its file's name.
        folder: where it lies, if not among this package's; it may extend `page.html`, which does.
        values: what it shows.

    Raises:
        MissingExtra: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise _missing("jinja2") from error
    folders = [*([folder] if folder else []), Path(__file__).parent / "templates"]
    environment = Environment(
        loader=FileSystemLoader(folders), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"percent": percent, "number": number}
    return environment.get_template(template).render(**values)


def check_page(path: Path) -> None:
    """Makes sure, before any work, that a page may be written there: over the log itself would be easily said.

    Raises:
        SettingsError: the name is no page's, or its folder is not there.
        MissingExtra: jinja2, or matplotlib for its charts, is not installed.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise SettingsError(f"{path}: expected a name that ends in .html for the page")
    if not path.absolute().parent.is_dir():
        raise SettingsError(f"{path}: there is no folder {path.parent}; make it first")
    for name in ("jinja2", "matplotlib"):
        if find_spec(name) is None:
            raise _missing(name)


def _missing(name: str) -> MissingExtra:
    return MissingExtra(f"pages need {name}; pip install 'request-complexity-classifier[report]'")


def write_page(path: Path, text: str) -> None:
    """The page in a file, whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    with explained(path):
        write_whole(path, text.encode(errors="replace"))  # half of a surrogate pair, which JSON may hold


def percent(value: float, digits: int = 1) -> str:
    """A share for people.

    >>> percent(0.1234), percent(float("nan"))
    ('12.3%', '–')
    """
    return "–" if value != value else f"{value:.{digits}%}"  # noqa: PLR0124 - NaN


def number(value: float) -> str:
    """A count for people: 12,345."""
    return f"{value:,.0f}"
