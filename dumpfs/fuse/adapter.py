"""FUSE requests turned into calls of nodes, and what nodes say turned into attributes and error numbers.

Only adapts a protocol: what the files are is defined in `dumpfs.vfs`. Handlers run inline in the one thread of a
worker process, so they are short; the exception are files that are not `ready`, whose handlers wait for the
`Publisher` while other requests go on.

Nothing is kept per inode: inode numbers are arithmetic, a file handle is the inode number, and `forget` has nothing
to do. Several workers may answer the requests of one open file.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, ReaddirToken, RequestContext, StatvfsData

from dumpfs.errors import DumpfsError, PageError
from dumpfs.fuse.attributes import BLOCK, Attributes, Ownership
from dumpfs.fuse.deciding import Decider
from dumpfs.fuse.eventloop import SMALL_READ, EventLoop
from dumpfs.fuse.publish import BuildError, Publisher
from dumpfs.vfs.counters import Count, SharedCounters
from dumpfs.vfs.node import DirNode, FileNode, Node

_LOG = logging.getLogger("dumpfs")

_KEPT_NODES = 1024
"""Files in use whose nodes a worker keeps, so that a read need not find its node again."""
_PUBLISH_EVERY = 64
"""Reads between two looks at the cache's counters."""
_MAX_COMPLAINTS = 1000
"""Different messages that a worker logs about failing files."""
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_TRUNC | os.O_APPEND

# Plain integers: an enumeration's members cost a look-up of their own in every read.
_REQUESTS, _READS, _BYTES = int(Count.REQUESTS), int(Count.READS), int(Count.BYTES)

_Handler = TypeVar("_Handler", bound=Callable[..., Coroutine[Any, Any, Any]])


class TreeLike(Protocol):
    """What the adapter needs of `vfs.tree.Tree`."""

    root: Any
    """The root directory, a `DirNode`."""

    @property
    def times_ns(self) -> int:
        """Time stamp of every file, in nanoseconds since the epoch."""

    def node(self, ino: int) -> Node:
        """The node with that inode number; LookupError when there is none."""


def _translated(handler: _Handler) -> _Handler:
    """The one translator: whatever a handler raises becomes an error number, for anything else ends the mount."""

    @functools.wraps(handler)
    async def wrapper(self: Adapter, *args: Any) -> Any:  # noqa: ANN401  # handlers of every signature
        try:
            return await handler(self, *args)
        except FUSEError:
            raise
        except Exception as exc:
            raise self.translate(exc, handler.__name__, args[:1]) from exc

    return wrapper  # type: ignore[return-value]  # it has the handler's signature


class Adapter(pyfuse3.Operations):
    """The handlers of one mount.

    Args:
        tree: the files.
        counters: where requests and bad pages are counted.
        owner: who owns the files.
        loop: the workers' event loop.
        total_bytes: size of the dump's files, for statfs.
        on_init: called when the kernel has greeted.
    """

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(
        self,
        tree: TreeLike,
        counters: SharedCounters,
        owner: Ownership,
        loop: EventLoop,
        *,
        total_bytes: int = 0,
        on_init: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        self.tree = tree
        self.counters = counters
        self.loop = loop
        self.on_file: Callable[[FileNode], None] = lambda node: None
        """Called with each file that is about to be read."""
        self._publisher = Publisher(loop, self._count_build)
        self._on_init = on_init
        self._total_bytes = total_bytes
        self._nodes: dict[int, FileNode] = {}
        self._complaints: set[str] = set()
        self._attributes = Attributes(owner, tree.times_ns, self.complain)
        self._decider = Decider(self._publisher)

    def init(self) -> None:
        """The kernel has greeted; the answer is sent when this returns."""
        if self._on_init is not None:
            self._on_init()

    def _count_build(self) -> None:
        self.counters.mine[Count.BUILT] += 1

    def translate(self, error: Exception, where: str, what: object) -> FUSEError:
        """The error number for what a handler raised, which is counted and, where it should not have been, logged."""
        if isinstance(error, DumpfsError):
            self.complain(error)
            return FUSEError(error.errno)
        self.counters.mine[Count.BUGS] += 1
        _LOG.error("unexpected error in %s%r", where, what, exc_info=error)
        return FUSEError(errno.EIO)

    def complain(self, error: DumpfsError) -> None:
        """Count an error that a file gave as its own, and log it if it is news."""
        self.counters.mine[Count.ERRORS] += 1
        if isinstance(error, PageError):
            if self.counters.bad_page(error):
                _LOG.warning("%s", error.message)
            return
        if isinstance(error, BuildError):
            return  # the helper has logged it
        news = error.errno == errno.EIO and error.message not in self._complaints
        if news and len(self._complaints) < _MAX_COMPLAINTS:
            self._complaints.add(error.message)
            _LOG.warning("%s", error.message)

    def failures(self) -> dict[int, str]:
        """Files that could not be built, by inode number, with the reason; of all workers."""
        return self._publisher.failures()

    def begin(self, node: Node) -> None:
        """Have a slow file built before anybody asks."""
        self._publisher.begin(node)

    # -- nodes

    def _node(self, ino: int) -> Node:
        self.counters.mine[_REQUESTS] += 1
        try:
            return self.tree.node(ino)
        except LookupError as exc:
            raise FUSEError(errno.ESTALE) from exc

    async def _dir(self, ino: int) -> DirNode:
        """The node of a directory, ready to be looked into."""
        node = self._node(ino)
        if not isinstance(node, DirNode):
            raise FUSEError(errno.ENOTDIR)
        if not node.ready:
            await self._publisher.prepare(node.prepared_by())
        return node

    async def _file(self, ino: int) -> FileNode:
        """The node of a file in use, ready to be read."""
        while (node := self._file_now(ino)) is None:
            await self._publisher.prepare(self.tree.node(ino).prepared_by())
        return node

    def _file_now(self, ino: int) -> FileNode | None:
        """As `_file`, or None when that would have to wait."""
        node = self._node(ino)
        if not isinstance(node, FileNode):
            raise FUSEError(errno.EISDIR)
        if not node.ready and not self._publisher.settled(node.prepared_by()):
            return None
        if node.volatile:
            self._publisher.adopt_published(self.tree.node)  # what it tells of them shall not depend on the worker
        if len(self._nodes) >= _KEPT_NODES:
            self._nodes.clear()
        self._nodes[node.ino] = node
        self.on_file(node)
        return node

    # -- requests about names and attributes

    @_translated
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        """Find an entry."""
        directory = await self._dir(parent_inode)
        decided = self._decider.is_known(directory)
        node = directory.lookup(os.fsdecode(name))
        if node is None:
            raise FUSEError(errno.ENOENT)
        return self._attributes.of(node, lasting=decided)

    @_translated
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        """Attributes, with the true size: a slow file is built for it."""
        node = self._node(inode)
        prepared = True
        if isinstance(node, FileNode) and node.volatile:
            await self._decider.wait(node)
            self._publisher.adopt_published(self.tree.node)
        if isinstance(node, FileNode) and not node.ready and not node.volatile:
            try:
                await self._publisher.prepare(node.prepared_by())
            except DumpfsError as exc:
                self.complain(exc)
                prepared = False
        return self._attributes.of(node, prepared=prepared)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Nothing is kept per inode."""

    @_translated
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        """One extended attribute."""
        if not name.startswith(b"user."):
            raise FUSEError(errno.ENODATA)  # asked for by ls, security modules and others for every file
        node = self._node(inode)
        value = node.xattrs().get(os.fsdecode(name)) if isinstance(node, FileNode) else None
        if value is None:
            raise FUSEError(errno.ENODATA)
        return value

    @_translated
    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        """Names of the extended attributes."""
        node = self._node(inode)
        return [os.fsencode(name) for name in node.xattrs()] if isinstance(node, FileNode) else []

    @_translated
    async def access(self, inode: int, mode: int, ctx: RequestContext) -> bool:
        """The kernel checks modes itself (default_permissions); nobody may write."""
        if mode & os.W_OK:
            raise FUSEError(errno.EROFS)
        return True

    @_translated
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        """Sizes of the file system: the dump's files, with no room left."""
        data = StatvfsData()
        data.f_bsize = data.f_frsize = BLOCK
        data.f_blocks = -(-self._total_bytes // BLOCK)
        data.f_namemax = 255
        return data

    # -- directories

    @_translated
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        """Open a directory; its handle is its inode number."""
        node = await self._dir(inode)
        await self._decider.wait(node)
        return node.ino

    @_translated
    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        """List entries after position `start_id`, as many as fit.

        A bare inode number stands for a file among a million; its size is asked for when somebody wants it.
        """
        reply = pyfuse3.readdir_reply
        page: EntryAttributes | None = None
        directory = await self._dir(fh)
        decided = self._decider.is_known(directory)
        for cookie, name, node in directory.entries(start_id):
            if isinstance(node, int):
                page = page or self._attributes.bare()
                page.st_ino = node
                if not reply(token, name, page, cookie):  # type: ignore[arg-type]  # bytes, see `Entry`
                    return
            else:
                page = None
                attributes = self._attributes.of(node, listed=True, lasting=decided)
                if not reply(token, os.fsencode(name), attributes, cookie):
                    return

    # -- files

    @_translated
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        """Open a file for reading; its handle is its inode number."""
        if flags & _WRITING:
            raise FUSEError(errno.EROFS)
        node = await self._file(inode)
        node.check_open()
        if node.volatile:
            await self._decider.wait(node)
            return FileInfo(fh=pyfuse3.FileHandleT(inode), direct_io=True, keep_cache=False)
        # Never direct_io here, not even for O_DIRECT: the kernel goes past its cache for that by itself, and with up to
        # 8 requests of a large read under way at once, where direct_io would ask for one after the other.
        return FileInfo(fh=pyfuse3.FileHandleT(inode), direct_io=False, keep_cache=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Read; a file that must be prepared is waited for."""
        while (data := self.read_now(fh, off, size)) is None:
            await _translated(Adapter._file)(self, fh)
        return data

    def read_now(self, fh: int, off: int, size: int) -> bytes | None:
        """Read; the hot path. None when the file must be prepared first.

        A byte that cannot be had fails the whole request, for a short answer ends the file.

        Raises:
            FUSEError: it cannot be read.
        """
        try:  # what `_translated` does, without another coroutine around this one
            node = self._nodes.get(fh) or self._file_now(fh)
            if node is None:
                return None
            data = node.read(off, size)
        except FUSEError:
            raise
        except Exception as exc:
            raise self.translate(exc, "read", (fh,)) from exc
        mine = self.counters.mine
        reads = mine[_READS] = mine[_READS] + 1
        mine[_BYTES] += len(data)
        if not reads % _PUBLISH_EVERY:
            self.counters.publish()
        self.loop.linger = size <= SMALL_READ
        return data

    async def release(self, fh: int) -> None:
        """Nothing is kept per open file."""

    async def releasedir(self, fh: int) -> None:
        """Nothing is kept per open directory."""

    @_translated
    async def _refuse(self, *_: object) -> None:
        raise FUSEError(errno.EROFS)

    setattr = mknod = mkdir = unlink = rmdir = symlink = rename = link = _refuse  # type: ignore[assignment]
    write = create = setxattr = removexattr = _refuse  # type: ignore[assignment]
