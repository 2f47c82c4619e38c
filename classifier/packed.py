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
_READ = 4096
"""Bytes unpacked at once: what they can become at most stays small, also in a file made to burst."""
_BLOCK = 2**20
_XZ_MEMORY = 256 * 2**20
"""More than any level of xz asks of who reads it."""


class Broken(EOFError):
    """The packed bytes end before they should, or are damaged."""


class _Members(io.RawIOBase):
    """The plain bytes of a file of members, each unpacked by a new object of `make`."""

    def __init__(self, packed: IO[bytes], make: Callable[[], Any], magic: bytes, damage: type[Exception]) -> None:
        self._packed, self._make, self._magic, self._damage = packed, make, magic, damage
        self._member = make()
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
            if not self._fill():
                return 0
        n = min(len(buffer), len(self._plain))
        buffer[:n], self._plain = self._plain[:n], self._plain[n:]
        return n

    def _fill(self) -> bool:
        """Unpacks some more; False at a good end."""
        if self._member.eof:
            rest = self._member.unused_data + self._packed.read(_READ)
            rest = rest.lstrip(b"\0")  # padding of tapes and block devices
            if not rest:
                return False
            if not rest.startswith(self._magic[: len(rest)]):
                self._problem = Broken("what follows the packed bytes is something else")
                return True
            self._member, self._rest = self._make(), rest
        packed, self._rest = self._rest or self._packed.read(_READ), b""
        if not packed:
            self._problem = Broken("it breaks off")
            return True
        try:
            self._plain = memoryview(self._member.decompress(packed))
        except self._damage as error:
            self._problem = Broken(str(error))
        return True


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
    magic = next((magic for magic in _UNPACKERS if head.startswith(magic)), None)
    if magic is None:
        return buffered
    make, damage = _UNPACKERS[magic]()
    return io.BufferedReader(_Members(buffered, make, magic, damage), _BLOCK)


Unpacker = tuple[Callable[[], Any], type[Exception]]
"""Makes what unpacks one member, and what that raises where it is damaged."""


def _zstandard() -> Unpacker:
    try:
        import zstandard
    except ImportError:
        raise MissingExtra("a .zst file needs zstandard; pip install 'request-complexity-classifier[bulk]'") from None
    return zstandard.ZstdDecompressor().decompressobj, zstandard.ZstdError


def _xz() -> Unpacker:
    import lzma

    return lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY), lzma.LZMAError


def _bzip2() -> Unpacker:
    import bz2

    return bz2.BZ2Decompressor, OSError


_UNPACKERS: Mapping[bytes, Callable[[], Unpacker]] = {
    GZIP: lambda: (lambda: zlib.decompressobj(31), zlib.error),
    ZSTANDARD: _zstandard,
    BZIP2: _bzip2,
    XZ: _xz,
}
"""By the first bytes; each imports its library where a file needs it, which not every Python was built with."""
