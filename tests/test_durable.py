"""Files that appear whole or not at all, whoever else writes one of that name."""

from __future__ import annotations

import os
from contextlib import ExitStack

import pytest

from classifier.durable import create_file, staged_folder, whole_file, write_whole


def test_two_writers_of_one_name_have_a_file_each(tmp_path, monkeypatch):
    """Two containers that share a disk are both process 1: the file is one's or the other's, and never a mixture."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    path = tmp_path / "state"
    with ExitStack() as first, ExitStack() as second:
        one, two = (stack.enter_context(whole_file(path)) for stack in (first, second))
        one.write(b"one" * 1000)
        two.write(b"two")
        first.close()
        assert path.read_bytes() == b"one" * 1000
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("hours", "gone"), [(0, False), (2, True)], ids=["at work", "killed"])
def test_what_a_killed_writer_left_is_removed_and_nothing_of_others(tmp_path, monkeypatch, hours, gone):
    """The next who writes that name removes what nobody has written to for an hour; other files look alike and stay."""
    path = tmp_path / "state"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), whole_file(path):
        patch.setattr("pathlib.Path.unlink", lambda *_, **__: None)  # what is killed removes nothing
        raise KeyboardInterrupt
    [left] = tmp_path.iterdir()
    for name in (".state-local", ".state-20260101", f"{left.name}.txt", left.name.replace("state", "state-b")):
        (tmp_path / name).touch()
    others = set(tmp_path.iterdir()) - {left}
    for file in tmp_path.iterdir():
        moment = file.stat().st_mtime - hours * 3600
        os.utime(file, (moment, moment))
    with whole_file(path) as file:
        file.write(b"whole")
    assert set(tmp_path.iterdir()) == {path, *others} | (set() if gone else {left})


@pytest.mark.parametrize(("hours", "gone"), [(0, False), (2, True)], ids=["at work", "killed"])
def test_what_a_killed_maker_of_a_folder_left_is_removed_and_nothing_of_others(tmp_path, monkeypatch, hours, gone):
    """The next who makes a folder there removes those in which nobody has written for an hour."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), staged_folder(tmp_path / "one") as left:
        patch.setattr("shutil.rmtree", lambda *_, **__: None)  # what is killed removes nothing
        raise KeyboardInterrupt
    (left / "large").write_bytes(b"x")
    for name in (".one-12345678.new", f"{left.name}.txt", "bundle"):
        (tmp_path / name).mkdir()
    others = set(tmp_path.iterdir()) - {left}
    for path in (left, left / "large", *others):
        moment = path.stat().st_mtime - hours * 3600
        os.utime(path, (moment, moment))
    with staged_folder(tmp_path / "two") as staged:
        staged.rename(tmp_path / "two")
    assert set(tmp_path.iterdir()) == {tmp_path / "two", *others} | (set() if gone else {left})


@pytest.mark.parametrize("hours", [0, 2])
def test_a_folder_in_which_a_large_file_grows_is_somebodys(tmp_path, hours):
    """A folder's own time is that of its last new name: what is in it tells when it was written to."""
    with staged_folder(tmp_path / "one") as slow:
        (slow / "large").write_bytes(b"x")
        moment = slow.stat().st_mtime - hours * 3600
        os.utime(slow, (moment, moment))
        with staged_folder(tmp_path / "two"):
            assert (slow / "large").exists()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("make", [create_file, write_whole], ids=["new", "replaced"])
def test_who_may_read_a_file_is_what_the_umask_says(tmp_path, make):
    """A file has the rights that any other has which this user makes."""
    before = os.umask(0o027)
    try:
        make(tmp_path / "file", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    assert len(list(tmp_path.iterdir())) == 1
