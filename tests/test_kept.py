"""Files that are read again when they change."""

from __future__ import annotations

import os

import pytest

from classifier.credentials import Authenticator
from classifier.errors import SettingsError
from classifier.kept import Kept
from classifier.reload import routes_of
from tests.test_routes_served import MIXED_TOML


@pytest.fixture
def kept(tmp_path):
    """A file that can be made unusable without a change of its own."""
    path, broken = tmp_path / "x", []
    path.write_text("one")

    def read():
        if broken:
            raise SettingsError("broken")
        return path.read_text()

    return Kept(read, path), path, broken


def test_a_file_is_read_again_when_it_changes_and_only_then(kept):
    """What did not change is not read, what cannot be used changes nothing and is said once."""
    value, path, broken = kept
    assert not value.reload()
    path.write_text("other")
    assert value.reload()
    broken.append(True)
    path.write_text("longer than before")
    with pytest.raises(SettingsError):
        value.reload()
    assert not value.reload()
    assert value.value == "other"


def test_a_refused_file_is_read_again_when_asked_or_when_its_rights_change(kept):
    """SIGHUP reads what was refused, though it is the same; so does a look after chmod."""
    value, path, broken = kept
    for mend in (lambda: value.reload(again=True), lambda: (path.chmod(0o600), value.reload())[1]):
        broken.append(True)
        path.write_text(path.read_text() + "!")
        with pytest.raises(SettingsError):
            value.reload()
        broken.clear()
        assert mend()
        assert value.value == path.read_text()
        assert not value.reload(again=True)


def test_a_pipe_in_a_files_place_is_not_waited_for(kept):
    """What has no end is not read, for everything else would wait with it; a file in its place is taken over."""
    value, path, _ = kept
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(SettingsError, match="is no file any more"):
        value.reload()
    assert value.value == "one"
    path.unlink()
    path.write_text("two")
    assert value.reload()


@pytest.mark.parametrize("kind", [Authenticator, routes_of])
def test_tokens_and_routes_that_were_refused_are_refused_again_when_asked(kind, tmp_path):
    """A file that stays broken is told of at each SIGHUP and not at each look."""
    path = tmp_path / "x"
    path.write_text("alice 0123456789abcdef\n" if kind is Authenticator else MIXED_TOML)
    found = kind(str(path))
    path.write_text("broken =")
    with pytest.raises(SettingsError):
        found.reload()
    assert not found.reload()
    with pytest.raises(SettingsError):
        found.reload(again=True)
