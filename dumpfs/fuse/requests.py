"""How a worker takes its requests when the loop in C is there.

That loop (`loops.Loop`) reads the worker's FUSE device and answers by itself what makes up nearly all of the work:
reads of memory that is in order, in half of what they cost through libfuse, pyfuse3 and our handlers. All other reads
are answered here, by the adapter. Everything else is libfuse's: the session's descriptor is one end of a pair of
sockets in such a worker, libfuse finds the requests there and leaves its answers there, and we carry them to the
device. Listings of a million files are made here, too.

A socket holds a few hundred kilobytes and libfuse would wait for ever for room in a full one, so answers that could be
large do not go through it: those to reads never do, and listings are asked for in pieces.

Sources: Linux include/uapi/linux/fuse.h (layouts and numbers), fs/fuse/dev.c (errors of the device).
"""

from __future__ import annotations

import errno
import functools
import logging
import mmap
import os
import select
import socket
import struct
from collections.abc import Awaitable, Callable
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

from pyfuse3 import FUSEError

from dumpfs.formats.plain import open_pages
from dumpfs.fuse.eventloop import SMALL_READ
from dumpfs.fuse.listing import list_bare
from dumpfs.memory.physical import HolePolicy, PhysMemory
from dumpfs.native import loops
from dumpfs.vfs.counters import Count, SharedCounters
from dumpfs.vfs.node import FileNode

if TYPE_CHECKING:
    from dumpfs.fuse.adapter import TreeLike

_LOG = logging.getLogger("dumpfs")

_REQUEST = struct.Struct("=4xIQ24xQQI")
"""Of a `fuse_in_header` opcode and unique; then, of a `fuse_read_in`, handle, offset and size."""
_OPCODE = struct.Struct("=4xI")
_SIZE = struct.Struct("=I")
_SIZE_OFFSET = 56
_ANSWER = struct.Struct("=IiQ")
"""A `fuse_out_header`: length, negative error number, unique."""
_HEAD_BYTES = 1 << 16
_MOST_PAGES = 256
_MOST_PAGES_FILE = "/proc/sys/fs/fuse/max_pages_limit"
"""Pages of the largest request that libfuse offers to take, unless the administrator has another number (Linux 6.13).
The kernel insists on room for one, though nobody writes here."""
_MAX_LISTING = 1 << 15
"""Bytes of a directory listed at once."""
_ROOM = 1 << 20
"""More than any answer that comes through the socket."""
_MAX_EXTENTS = 1 << 16
_SOCKET_BYTES = 1 << 20
"""Room in the socket that is asked for; the kernel gives what it may (208 KiB at least, by its defaults)."""


class Opcode(IntEnum):
    """Kinds of requests that are not libfuse's."""

    FORGET = 2
    READ = 15
    READDIR = 28
    INTERRUPT = 36
    BATCH_FORGET = 42
    READDIRPLUS = 44


_NO_ANSWER = frozenset((Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT))
"""Nobody waits for an answer to these. Nothing is kept per inode, and what is under way is not interrupted."""
_LISTINGS = frozenset((Opcode.READDIR, Opcode.READDIRPLUS))


class Reader(Protocol):
    """Who answers reads that the loop in C does not; `Adapter` is one."""

    tree: TreeLike
    on_file: Callable[[FileNode], None]
    """Called with each file that is about to be read."""

    def read_now(self, fh: int, off: int, size: int) -> bytes | None:
        """The bytes, or None if the file must be prepared first. Raises FUSEError."""

    async def read(self, fh: int, off: int, size: int) -> bytes:
        """The bytes. Raises FUSEError."""


def _room() -> int:
    """Bytes of the largest request."""
    pages = _MOST_PAGES
    try:
        with open(_MOST_PAGES_FILE, encoding="ascii") as file:
            pages = max(pages, int(file.read()))
    except (OSError, ValueError):
        pass  # an older kernel
    return pages * mmap.PAGESIZE + _HEAD_BYTES


class Requests:
    """The requests of one worker.

    Args:
        device: the worker's FUSE device.
        session: the session's descriptor, which libfuse reads; it becomes an end of the pair.
        reader: answers reads.
        counters: where they are counted.
        read_slowly: has a read that must wait answered by another task; called with what reads and answers.
    """

    def __init__(
        self,
        device: int,
        session: int,
        reader: Reader,
        counters: SharedCounters,
        read_slowly: Callable[[Callable[[], Awaitable[None]]], None],
    ) -> None:
        self._reader = reader
        self._counters = counters
        self._read_slowly = read_slowly
        self.device = device
        self.socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            for end in (self.socket, other):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
            os.dup2(other.fileno(), session, inheritable=False)
        events = select.epoll()
        events.register(device, select.EPOLLIN)
        events.register(self.socket, select.EPOLLIN)
        self._events = events
        self.fd = events.fileno()
        """Readable when a request or an answer of libfuse is there."""
        self._loop = loops.Loop(
            device=device,
            room=_room(),
            counters=counters.mine,
            reads=Count.READS,
            bytes=Count.BYTES,
            hits=Count.NATIVE_HITS,
            misses=Count.NATIVE_MISSES,
        )
        self._known: set[int] = set()
        self._pages: dict[int, loops.Pages | None] = {}
        reader.on_file = self._add

    def close(self) -> None:
        """Close what could keep requests alive that nobody will answer; in a helper that was forked from here."""
        os.close(self.device)
        self.socket.close()
        self._events.close()

    # -- files that the loop in C can answer for

    def _add(self, node: FileNode) -> None:
        """Have the loop answer reads of a file from now on, if it can."""
        if node.ino in self._known:
            return
        self._known.add(node.ino)
        shown = node.memory_extents()
        pages = self._pages_of(shown.memory) if shown is not None else None
        if shown is not None and pages is not None and 0 < len(shown.extents) <= _MAX_EXTENTS:
            self._loop.add(node.ino, pages, shown.extents)

    def _pages_of(self, memory: PhysMemory) -> loops.Pages | None:
        key = id(memory)  # it lives as long as the tree
        if key not in self._pages:
            cache = memory.cache
            zeros = memory.policy is HolePolicy.ZERO
            pages = open_pages(memory.plain_pages(), memory.image.meta.block_size, zeros=zeros, cache=cache.limit // 2)
            if pages is not None:
                cache.lend(pages.used)
            self._pages[key] = pages
        return self._pages[key]

    # -- requests

    def take(self, polite: bool) -> bool:
        """Answer reads until libfuse has something to do, which then is in its socket; False when it has not.

        Args:
            polite: whether to return also when no request is there, and after some that were.

        Raises:
            OSError: the device cannot be read; ENODEV when the file system is unmounted.
        """
        while True:
            request = self._loop.next(polite)
            if request is None:
                return False
            (opcode,) = _OPCODE.unpack_from(request)
            if opcode == Opcode.READ:
                if not self._read(request):
                    return False
            elif opcode not in _NO_ANSWER and not (opcode == Opcode.READDIRPLUS and self._list(request)):
                self.socket.send(_in_pieces(request) if opcode in _LISTINGS else request)
                return True

    def _read(self, request: bytes) -> bool:
        """Answer a read; False when that is left to another task."""
        _, unique, fh, offset, size = _REQUEST.unpack_from(request)
        try:
            data = self._reader.read_now(fh, offset, size)
        except FUSEError as exc:
            self._answer(unique, b"", exc.errno)
            return True
        if data is None:
            self._read_slowly(functools.partial(self._read_later, unique, fh, offset, size))
            return False
        self._answer(unique, data, 0)
        if size <= SMALL_READ:
            self._loop.linger()
        return True

    def _list(self, request: bytes) -> bool:
        """Answer a listing of bare files; False when it is libfuse's, with whatever goes wrong."""
        _, unique, fh, offset, size = _REQUEST.unpack_from(request)
        try:
            listing = list_bare(self._reader.tree.node(fh), offset, size)
        except Exception:  # noqa: BLE001  # whatever it is, it happens there again, and is told as all others are
            return False
        if listing is None:
            return False
        self._counters.mine[Count.REQUESTS] += 1
        self._answer(unique, listing, 0)
        return True

    async def _read_later(self, unique: int, fh: int, offset: int, size: int) -> None:
        try:
            self._answer(unique, await self._reader.read(fh, offset, size), 0)
        except FUSEError as exc:
            self._answer(unique, b"", exc.errno)

    def _answer(self, unique: int, data: bytes, error: int) -> None:
        self._write((_ANSWER.pack(_ANSWER.size + len(data), -error, unique), data))

    def _write(self, parts: tuple[bytes, ...]) -> None:
        try:
            os.writev(self.device, parts)
        except OSError as exc:
            # ENOENT: nobody waits for it any more, or another worker was asked the same. ENODEV: unmounted.
            if exc.errno not in (errno.ENOENT, errno.ENODEV):
                _LOG.error("an answer was refused: %s", exc.strerror)

    def carry(self) -> None:
        """Carry libfuse's answers to the device."""
        while True:
            try:
                answer = self.socket.recv(_ROOM, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            if not answer:
                return  # libfuse has closed its end
            self._write((answer,))


def _in_pieces(request: bytes) -> bytes:
    """A request for a listing, for so much of it as a socket holds."""
    (size,) = _SIZE.unpack_from(request, _SIZE_OFFSET)
    if size <= _MAX_LISTING:
        return request
    return request[:_SIZE_OFFSET] + _SIZE.pack(_MAX_LISTING) + request[_SIZE_OFFSET + _SIZE.size :]
