"""gzip, Zstandard, bzip2, xz → plain bytes: as many members or frames as there are; an error where the last breaks off.

The libraries' own readers lose what they had buffered when a gzip breaks off, and take a broken Zstandard file for a
whole one; logs that were cut by a full disk or a crash are common, so here every byte before the break comes out first.

Knows nothing of what the bytes are.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Mapping
from typing import IO, Any

from classifier.errors import MissingExtra

GZIP, ZSTANDARD, BZIP2, XZ, ZIP = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ\0", b"PK\3\4"
SKIPPABLE = tuple(bytes([first]) + b"\x2a\x4d\x18" for first in range(0x50, 0x60))
"""Zstandard's frames that hold nothing of the file."""
_HEAD = 8
"""Bytes that tell a member's kind, and the length of one that is skipped."""
_READ = 4096
_PIECE = 128
"""Bytes unpacked at once: of Zstandard four can become 128 KiB, so a file made to burst does so slowly."""
_BLOCK = 2**20
_XZ_MEMORY = 256 * 2**20
"""More than any level of xz asks of who reads it."""


Kinds = Mapping[bytes, Callable[[], Any]]
"""What makes the object that unpacks one member, by the member's first bytes."""
Unpacker = tuple[Kinds, type[Exception]]
"""And what such an object raises where the member is damaged."""


class Broken(EOFError):
    """The packed bytes end before they should, or are damaged."""


class _Members(io.RawIOBase):
    """The plain bytes of a file of members, each unpacked by a new object of what `kinds` has for its first bytes."""

    def __init__(self, packed: IO[bytes], kinds: Kinds, damage: type[Exception]) -> None:
        self._packed, self._kinds, self._damage = packed, kinds, damage
        self._member: Any = None
        self._rest = b""
        self._plain = memoryview(b"")
        self._problem: Broken | None = None

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Plain bytes; raises Broken after the last good one."""
        while not self._plain:
            if self._problem is not None:
                raise self._problem
            try:
                if not self._fill():
                    return 0
            except Broken as problem:
                self._problem = problem
        n = min(len(buffer), len(self._plain))
        buffer[:n], self._plain = self._plain[:n], self._plain[n:]
        return n

    def _fill(self) -> bool:
        """Unpacks some more; False at a good end."""
        if self._member is None and not self._begin():
            return False
        packed = b""
        if getattr(self._member, "needs_input", True):  # of bzip2 and xz it may hold more than it gave out
            rest = self._rest or self._packed.read(_READ)
            packed, self._rest = rest[:_PIECE], rest[_PIECE:]
            if not packed:
                raise Broken("it breaks off")
        try:
            self._plain = memoryview(self._member.decompress(packed))
        except self._damage as error:
            raise Broken(str(error)) from error
        if self._member.eof:
            self._rest, self._member = self._member.unused_data + self._rest, None
        return True

    def _begin(self) -> bool:
        """Begins the next member; False where none follows."""
        rest = self._rest.lstrip(b"\0")  # padding of tapes and block devices
        while len(rest) < _HEAD and (more := self._packed.read(_READ)):
            rest = (rest + more).lstrip(b"\0")
        if not rest:
            return False
        make = next((make for magic, make in self._kinds.items() if rest.startswith(magic[: len(rest)])), None)
        if make is None:
            raise Broken("what follows the packed bytes is something else")
        self._member, self._rest = make(), rest
        return True


class _Skipped:
    """A frame of Zstandard that holds nothing of the file: pzstd begins with one, the seekable format ends with one."""

    def __init__(self) -> None:
        self.eof, self.unused_data = False, b""
        self._left: int | None = None

    def decompress(self, packed: bytes) -> bytes:
        """Nothing; the first piece is to have the frame's whole head."""
        left = _HEAD + int.from_bytes(packed[4:_HEAD], "little") if self._left is None else self._left
        self.unused_data, self._left = packed[left:], max(0, left - len(packed))
        self.eof = not self._left
        return b""


class _Bounded:
    """A member of bzip2 or xz, of which a piece can become gigabytes: unpacked `_BLOCK` bytes at a time."""

    def __init__(self, member: Any) -> None:
        self._member = member

    def __getattr__(self, name: str) -> Any:
        return getattr(self._member, name)

    def decompress(self, packed: bytes) -> bytes:
        """The next plain bytes; more without further packed ones where it needs no input."""
        plain: bytes = self._member.decompress(packed, _BLOCK)
        return plain


def unpacked(raw: IO[bytes]) -> IO[bytes]:
    """The plain bytes of a file, by its first bytes rather than by its name.

    Raises:
        Broken: it is an archive of files.
        MissingExtra: Zstandard needs its package.
    """
    buffered: IO[bytes] = raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw, _BLOCK)  # type: ignore[type-var]
    head = buffered.peek(len(XZ))  # type: ignore[attr-defined]
    if head.startswith(ZIP):
        raise Broken("it is a ZIP archive; name what is in it, as zip://*.jsonl::FILE.zip")
    unpacker = next((unpacker for magic, unpacker in _UNPACKERS.items() if head.startswith(magic)), None)
    if unpacker is None:
        return buffered
    return io.BufferedReader(_Members(buffered, *unpacker()), _BLOCK)


def _zstandard() -> Unpacker:
    try:
        import zstandard
    except ImportError:
        raise MissingExtra("a .zst file needs zstandard; pip install 'request-complexity-classifier[bulk]'") from None
    kinds: Kinds = {ZSTANDARD: zstandard.ZstdDecompressor().decompressobj, **dict.fromkeys(SKIPPABLE, _Skipped)}
    return kinds, zstandard.ZstdError


def _xz() -> Unpacker:
    import lzma

    return {XZ: lambda: _Bounded(lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY))}, lzma.LZMAError


def _bzip2() -> Unpacker:
    import bz2

    return {BZIP2: lambda: _Bounded(bz2.BZ2Decompressor())}, OSError


_UNPACKERS: Mapping[bytes, Callable[[], Unpacker]] = {
    GZIP: lambda: ({GZIP: lambda: zlib.decompressobj(31)}, zlib.error),
    **dict.fromkeys((ZSTANDARD, *SKIPPABLE), _zstandard),
    BZIP2: _bzip2,
    XZ: _xz,
}
"""By the first bytes; each imports its library where a file needs it, which not every Python was built with."""
