"""Putting a flattened stream back in order (-R), from a pipe or a file.

Records are applied as they come, a later one over an earlier. Until the end mark was seen the file is marked
incomplete, whatever the stream says of itself.

Source: makedumpfile common.h (the flattened format).
"""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Callable
from typing import NamedTuple

from dumpfs.elf.structs import DUMP_ELF_INCOMPLETE, EHDR, ELF_MAGIC, elf_abi
from dumpfs.errors import CorruptDumpError, IncompleteDumpError, SourceError, UnknownFormatError
from dumpfs.formats.kdump.header import DUMP_DH_COMPRESSED_INCOMPLETE, MAIN, SIGNATURE
from dumpfs.structs import LE64, Abi
from dumpfs.writer.bytesink import FLAT_HEADER_SIZE, FLAT_SIGNATURE, PlainSink

_POLL_SECONDS = 0.2
"""Between two looks whether to stop, while nothing comes."""
_RECORD = struct.Struct(">qq")
_COPY_BYTES = 1 << 20
_HEAD_BYTES = 512
_MAX_OFFSET = 1 << 62
_KDUMP_ABIS = (LE64, Abi("big", 8, 8), Abi("little", 4, 8), Abi("big", 4, 8))


class Rearranged(NamedTuple):
    """What became of a stream."""

    nbytes: int
    """Bytes written."""
    cause: str
    """Why it ended before its end mark, or ''."""


class _Mark(NamedTuple):
    """Where a header says that the dump is incomplete."""

    offset: int
    size: int
    bit: int
    little: bool


def find_mark(head: bytes) -> _Mark | None:
    """Where the mark of an incomplete dump is in a dump that begins with `head`, or None."""
    if head.startswith(SIGNATURE):
        for abi in _KDUMP_ABIS:
            if len(head) < MAIN.size(abi):
                continue
            fields = MAIN.parse_ints(abi, head)
            size = fields["block_size"]
            if 0 <= fields["header_version"] <= 64 and 0x400 <= size <= 0x40000 and not size & (size - 1):
                return _Mark(MAIN.offset(abi, "status"), 4, DUMP_DH_COMPRESSED_INCOMPLETE, abi.byteorder == "little")
    elif head.startswith(ELF_MAGIC) and len(head) >= 64:
        abi = elf_abi(8 if head[4] == 2 else 4, "little" if head[5] == 1 else "big")
        return _Mark(EHDR.offset(abi, "e_flags"), 4, DUMP_ELF_INCOMPLETE, abi.byteorder == "little")
    return None


def set_mark(head: bytes) -> bytes:
    """`head` with the mark set."""
    mark = find_mark(head)
    if mark is None:
        return head
    order = "little" if mark.little else "big"
    stop = mark.offset + mark.size
    value = int.from_bytes(head[mark.offset : stop], order) | mark.bit  # type: ignore[arg-type]
    return head[: mark.offset] + value.to_bytes(mark.size, order) + head[stop:]  # type: ignore[arg-type]


class Rearranger:
    """Applies the records of one stream.

    Args:
        fd: the stream, read from its current position on.
        name: of the stream, for messages.
        out: where the bytes go.
        stop: asked between records; the reason to stop early, or ''.
    """

    def __init__(self, fd: int, name: str, out: PlainSink, stop: Callable[[], str]) -> None:
        self._fd, self._name, self._out, self._stop = fd, name, out, stop
        self._head = b""
        self._nbytes = 0

    def run(self) -> Rearranged:
        """Apply every record.

        Raises:
            UnknownFormatError: it is no flattened stream.
            CorruptDumpError: a record is impossible.
            OSError: the output cannot be written.
        """
        header = self._read(FLAT_HEADER_SIZE)
        if not header.startswith(FLAT_SIGNATURE):
            raise UnknownFormatError(self._name, "is not a flattened dump", hint="-R takes what -F wrote")
        cause = ""
        try:
            cause = self._apply_all()
        except (SourceError, IncompleteDumpError) as exc:
            cause = exc.message
        if not cause and self._head:
            self._out.sync()
            self._out.write_at(0, [self._head])
        return Rearranged(self._nbytes, cause)

    def _apply_all(self) -> str:
        while True:
            record = self._read(_RECORD.size)
            if len(record) < _RECORD.size:
                return "the stream ended before its end mark"
            offset, size = _RECORD.unpack(record)
            if (offset, size) == (-1, -1):
                return ""
            if not 0 <= offset <= _MAX_OFFSET or not 0 < size <= _MAX_OFFSET:
                raise CorruptDumpError(self._name, f"a record says offset {offset}, size {size}")
            if not self._copy(offset, size):
                return "the stream ended inside a record"
            if reason := self._stop():
                return reason

    def _copy(self, offset: int, size: int) -> bool:
        while size:
            data = self._read(min(size, _COPY_BYTES))
            if not data:
                return False
            self._out.write_at(offset, [self._marked(offset, data)])
            self._nbytes += len(data)
            offset += len(data)
            size -= len(data)
        return True

    def _marked(self, offset: int, data: bytes) -> bytes:
        """`data`, in which the header of the dump says that it is incomplete; what it should say is remembered."""
        if offset >= _HEAD_BYTES:
            return data
        head = bytearray(self._head.ljust(offset, b"\0"))
        part = data[: _HEAD_BYTES - offset]
        head[offset : offset + len(part)] = part
        self._head = bytes(head)
        marked = set_mark(self._head)
        return marked[offset : offset + len(part)] + data[len(part) :]

    def _read(self, size: int) -> bytes:
        """`size` bytes, fewer only where the stream ends.

        Raises:
            SourceError: it cannot be read.
            IncompleteDumpError: stopped while nothing came.
        """
        pieces = []
        while size:
            while not select.select([self._fd], [], [], _POLL_SECONDS)[0]:
                if reason := self._stop():
                    raise IncompleteDumpError(reason)
            try:
                data = os.read(self._fd, size)
            except OSError as exc:
                raise SourceError(self._name, exc.strerror or str(exc)) from exc
            if not data:
                break
            pieces.append(data)
            size -= len(data)
        return b"".join(pieces)
