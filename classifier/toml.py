"""TOML files that people write: read, or refused in one line that names the file.

Knows nothing of what their tables mean.
"""

from __future__ import annotations

import stat
import tomllib
from pathlib import Path
from typing import Any

from classifier.errors import SettingsError


def read_toml(path: str | Path, holds: str, *, again: bool = False) -> dict[str, Any]:
    """The tables of a TOML file.

    Args:
        path: the file.
        holds: what should be in it, for the message: "the routes".
        again: it was read before; a pipe is refused then, as it would be empty or waited for.

    Raises:
        SettingsError: it cannot be read, or is not TOML.
    """
    try:
        if again and not stat.S_ISREG(Path(path).stat().st_mode):
            raise SettingsError(f"{path}: is no file, and what it held cannot be read again; keep {holds} in a file")
        return tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror}); give the TOML file of {holds}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: is not TOML: it holds what is not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: is not TOML: {error}") from None
    except (ValueError, RecursionError):
        raise SettingsError(f"{path}: holds a number or a nesting that is too large; write a smaller one") from None
