"""One opened dump and what is known about it, for every view.

Opening checks headers only. Everything dearer (the kernel's addresses, the page counts, the layout of /vmcore) is
found out when a view first needs it, once per process. Any thread may use a `Dump`; forked workers inherit what was
known at the fork and find out the rest by themselves, with the same result.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Protocol

from dumpfs.errors import DumpfsError, PageError, SourceError
from dumpfs.formats.base import DumpImage
from dumpfs.memory.cache import DEFAULT_CACHE_BYTES, PageCache
from dumpfs.memory.physical import HolePolicy, PhysMemory
from dumpfs.ranges import PfnSet, ScaledSet, last_stop
from dumpfs.units import PageState, Pfn
from dumpfs.vfs.savedlog import SavedLogs
from dumpfs.vmcoreinfo import MAX_BYTES, Vmcoreinfo

if TYPE_CHECKING:
    from dumpfs.formats.pieces import Piece
    from dumpfs.linux.kernel import Kernel
    from dumpfs.linux.vmcoreinfo_judge import Told
    from dumpfs.vfs.inspection import Inspection
    from dumpfs.vfs.tree import Tree

PagesMode = Literal["auto", "list", "open"]

_COUNTED_PFNS = 1 << 26
"""Pages up to which counting bits takes no more than 20 ms."""
_SAMPLES, _SAMPLE_BYTES = 128, 512


@dataclass(frozen=True, slots=True)
class OpenOptions:
    """How a dump is to be opened and shown."""

    holes: HolePolicy = HolePolicy.ZERO
    """What /hmem and /vmcore give for excluded and absent memory."""
    pages: PagesMode = "auto"
    """Whether /pages lists its entries, or has them opened by name only; auto: listed up to 2^20 of them."""
    phys_base: int | None = None
    """x86-64: physical displacement of the kernel image in bytes, signed, when the dump does not tell."""
    kaslr: int | None = None
    """Virtual displacement of the kernel image in bytes, when the dump does not tell."""
    cache: int = DEFAULT_CACHE_BYTES
    """Bytes of decoded pages to keep, per process."""
    format: str | None = None
    """Take the input for this format instead of looking at it."""
    pieces: tuple[Piece, ...] = ()
    """Where the pieces of a flat image belong."""
    vmcoreinfo: str | None = None
    """Path of a VMCOREINFO text, for dumps without."""
    vmlinux: str | None = None
    """Path of the kernel's vmlinux, for dumps without VMCOREINFO."""
    caller: bool = False
    """/dmesg shows caller ids (threads and processors)."""
    device: bool = False
    """/dmesg shows device information."""


TRAFFIC = frozenset(("requests", "reads", "bytes_read", "cache_hits", "cache_misses", "cache_bytes"))
"""Names of `Counters.values` that change with every request."""


class Counters(Protocol):
    """What /status tells about a mount: numbers and bad pages, over all its worker processes."""

    def values(self) -> Mapping[str, int]:
        """Counts by name."""

    def bad_runs(self) -> Sequence[tuple[Pfn, Pfn, str]]:
        """Runs of pages that could not be read: first, one past the last, and why."""

    def workers(self) -> Sequence[int]:
        """Process ids that answer requests."""

    def bad_page(self, error: PageError) -> bool:
        """Remember a page that could not be read; True when it was not known yet."""


class LocalCounters:
    """`Counters` of one process, for use without a mount."""

    MAX_RUNS = 1000
    """Runs of bad pages to remember; more are only counted."""

    def __init__(self) -> None:
        self._runs: dict[Pfn, str] = {}
        self._dropped = 0

    def values(self) -> Mapping[str, int]:
        """See `Counters`."""
        return {"bad_pages_not_named": self._dropped} if self._dropped else {}

    def bad_runs(self) -> Sequence[tuple[Pfn, Pfn, str]]:
        """See `Counters`."""
        runs: list[tuple[Pfn, Pfn, str]] = []
        for pfn, why in sorted(self._runs.items()):
            if runs and runs[-1][1] == pfn and runs[-1][2] == why:
                runs[-1] = (runs[-1][0], pfn + 1, why)
            else:
                runs.append((pfn, pfn + 1, why))
        return runs

    def workers(self) -> Sequence[int]:
        """See `Counters`."""
        return (os.getpid(),)

    def bad_page(self, error: PageError) -> bool:
        """See `Counters`; pages that were left out on purpose, or are no RAM, are not bad."""
        if error.pfn in self._runs or error.state in (PageState.EXCLUDED, PageState.ABSENT):
            return False
        if len(self._runs) >= self.MAX_RUNS:
            self._dropped += 1
            return False
        self._runs[error.pfn] = error.detail or error.state.name.lower()
        return True


class Dump:
    """A dump, its options, and what follows from them.

    Args:
        image: the dump's pages.
        options: how to show it.
        paths: absolute names of its files, for people.
        vmcoreinfo: text that replaces the dump's own.
    """

    def __init__(
        self,
        image: DumpImage,
        options: OpenOptions | None = None,
        paths: Iterable[str] = (),
        vmcoreinfo: bytes | None = None,
    ) -> None:
        self.image = image
        self.options = options if options is not None else OpenOptions()
        self.paths = tuple(paths)
        self.name = self.paths[0] if self.paths else ""
        """What the table of mounts calls it: the first path that the user gave, perhaps a folder's."""
        self.statuses = tuple(map(_status, self.paths))
        """What stat said of each path, or None. Asked now: later a mount may lie over the folder, perhaps our own, and
        a process that serves a mount must not wait for it."""
        self.saved_logs = SavedLogs(self.name)
        self.cache = PageCache(self.options.cache)
        self.counters: Counters = LocalCounters()
        """Replaced by the mount with counters that its workers share."""
        self.remarks: list[str] = []
        """What else /status is to tell, one sentence each; filled before the mount forks."""
        self.failed: dict[int, str] = {}
        """Files that turned out not to be buildable in this process: inode number and reason."""
        self.failures: Callable[[], Mapping[int, str]] = lambda: self.failed
        """Likewise, of all processes; replaced by the mount, whose files are built by helpers."""
        self._vmcoreinfo_override = vmcoreinfo
        self.kernel_error: DumpfsError | None = None
        """Why `kernel` is None, once it was asked for."""

    @classmethod
    def open(cls, paths: Sequence[str], options: OpenOptions | None = None) -> Dump:
        """Open the dump made of `paths` (several: a split set).

        Only headers are looked at, unless a vmlinux or a VMCOREINFO is named: they are read before anything can be
        mounted over them, and what is wrong with them is to be told at once.

        Raises:
            DumpfsError: it cannot be opened, or an option names a file that cannot be read.
        """
        from dumpfs.formats import find_files, open_image
        from dumpfs.formats.pieces import split_address

        options = options if options is not None else OpenOptions()
        override = None if options.vmcoreinfo is None else _read_vmcoreinfo(options.vmcoreinfo)
        files = find_files(paths)
        image = open_image(files, format=options.format, pieces=options.pieces)
        try:
            dump = cls(image, options, (os.path.abspath(split_address(name)[0]) for name in files), override)
            dump.name = os.path.abspath(split_address(paths[0])[0])
            if options.vmlinux is not None or override is not None:
                dump.need_kernel()
                dump.inspection.open_debug_file()
        except BaseException:
            image.close()
            raise
        return dump

    def close(self) -> None:
        """Close the files of the dump; its nodes fail to read afterwards."""
        self.image.close()
        self.saved_logs.close()

    def __enter__(self) -> Dump:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @cached_property
    def tree(self) -> Tree:
        """The dump as files."""
        from dumpfs.vfs.tree import Tree

        return Tree(self)

    # -- what the kernel said of itself

    @property
    def vmcoreinfo_text(self) -> bytes | None:
        """VMCOREINFO as far as it is known without searching memory for it (s390x keeps a pointer to it), or None."""
        text = self._believed_vmcoreinfo
        return text if text is not None else _text_of(self.kernel)

    @property
    def deep_vmcoreinfo_text(self) -> bytes | None:
        """Likewise, but memory is searched for it if need be, which may take as long as reading the whole dump."""
        is_doubted = self.kernel is not None and self.kernel.doubt  # memory may contradict a text that looks well
        text = None if is_doubted else self._believed_vmcoreinfo
        return text if text is not None else _text_of(self.deep_kernel)

    @cached_property
    def header_vmcoreinfo(self) -> bytes | None:
        """VMCOREINFO as far as it is known without looking into memory: its whole lines, if it is a torn one."""
        if self._vmcoreinfo_override is not None:
            return Vmcoreinfo(self._vmcoreinfo_override).raw or None
        return None if self._told_vmcoreinfo is None else self._told_vmcoreinfo.text

    @property
    def _believed_vmcoreinfo(self) -> bytes | None:
        """Likewise, but None if there is reason to doubt it: memory may have a better one."""
        told = self._told_vmcoreinfo if self._vmcoreinfo_override is None else None
        return self.header_vmcoreinfo if told is None or not told.doubt else None

    @cached_property
    def _told_vmcoreinfo(self) -> Told | None:
        from dumpfs.linux.vmcoreinfo_judge import best_offered, read_notes

        return best_offered(self.image, read_notes(self.image, []), [])  # `kernel` says what is wrong with them

    @cached_property
    def kernel(self) -> Kernel | None:
        """What is known about the dumped kernel, or None when an option misleads; see `kernel_error`.

        Memory is not searched for what the dump's headers do not say: see `deep_kernel`.
        """
        from dumpfs.linux.kernel import find_kernel

        options = self.options
        try:
            return find_kernel(
                self.image,
                vmcoreinfo=self._vmcoreinfo_override,
                vmlinux=options.vmlinux,
                phys_base=options.phys_base,
                kaslr=options.kaslr,
                cache=self.cache,
            )
        except DumpfsError as error:
            self.kernel_error = error
            return None

    @property
    def deep_kernel(self) -> Kernel | None:
        """`kernel`, after a search of memory when the dump carries no VMCOREINFO; that may take very long."""
        return self.kernel.deep if self.kernel is not None else None

    def need_kernel(self) -> Kernel:
        """`kernel`, or the error why there is none.

        Raises:
            DumpfsError: as `find_kernel`.
        """
        kernel = self.kernel
        if kernel is None:
            raise self.kernel_error or DumpfsError("the dumped kernel is unknown")
        return kernel

    @cached_property
    def inspection(self) -> Inspection:
        """The kernel's own symbols, types and tasks; found out when first asked for."""
        from dumpfs.vfs.inspection import Inspection

        return Inspection(self)

    @cached_property
    def crash_time_ns(self) -> int:
        """When the machine crashed, in nanoseconds since the epoch.

        As cheap as opening: VMCOREINFO's CRASHTIME, the header's time, else when the file was written.
        """
        text = self.header_vmcoreinfo
        seconds: float | None = None
        if text is not None:
            try:
                seconds = Vmcoreinfo(text).crash_time
            except DumpfsError:
                seconds = None  # a malformed line is no reason not to mount
        seconds = seconds or self.image.meta.timestamp
        if seconds is not None and 0 < seconds < 1 << 33:
            return int(seconds * 1_000_000_000)
        return next((status.st_mtime_ns for status in self.statuses if status is not None), 0)

    # -- memory

    @cached_property
    def lost(self) -> PfnSet:
        """Kernel pages that should be in the dump and are known not to be."""
        phys, meta = self.phys, self.image.meta
        return ScaledSet(self.image.lost, meta.block_size // phys.page_size, meta.first_paddr >> phys.page_shift)

    @cached_property
    def page_size(self) -> int:
        """Bytes of a kernel page; the image's blocks may be larger."""
        block_size = self.image.meta.block_size
        text = self.header_vmcoreinfo
        size: int | None = None
        if text is not None:
            try:
                size = Vmcoreinfo(text).page_size
            except DumpfsError:
                size = None  # a malformed line; what follows is as good
        if size is None and block_size > 4096 and self.kernel is not None:
            size = self.kernel.page_size
        return size or block_size

    @cached_property
    def phys(self) -> PhysMemory:
        """Physical memory under the hole policy of the options."""
        return PhysMemory(self.image, self.page_size, self.options.holes, self.cache)

    @cached_property
    def strict(self) -> PhysMemory:
        """Physical memory in which a page without content is an error."""
        return self.phys.with_policy(HolePolicy.ERROR)

    @cached_property
    def stop_pfn(self) -> Pfn:
        """One past the last kernel page that is RAM (a bitmap may reach beyond it)."""
        phys, meta = self.phys, self.image.meta
        scale = meta.block_size // phys.page_size
        return (meta.first_paddr >> phys.page_shift) + last_stop(self.image.ram) * scale

    @cached_property
    def stored_bytes(self) -> int:
        """Bytes of pages in the dump, decoded; for a large dump an estimate from samples of its bitmap."""
        stored, page_size = self.phys.stored, self.phys.page_size
        if self.stop_pfn <= _COUNTED_PFNS:
            return stored.count() * page_size
        size = (self.stop_pfn + 7) // 8
        step = size // _SAMPLES
        found = sum(int.from_bytes(stored.read_bits(i * step, _SAMPLE_BYTES)).bit_count() for i in range(_SAMPLES))
        return found * size // (_SAMPLES * _SAMPLE_BYTES) * page_size

    @cached_property
    def searched_bytes(self) -> int:
        """Bytes that a search of the whole memory reads: holes of the file are passed over."""
        from dumpfs.memory.scan import written_bytes

        return min(self.stored_bytes, written_bytes(self.image))

    @cached_property
    def memory_size(self) -> int:
        """Bytes of /hmem: one past the last RAM page's last physical address."""
        return self.stop_pfn << self.phys.page_shift


def _status(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None  # gone already; what is open can still be read


def _text_of(kernel: Kernel | None) -> bytes | None:
    return None if kernel is None or kernel.vmcoreinfo is None else kernel.vmcoreinfo.raw or None


def _read_vmcoreinfo(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SourceError(path, error.strerror or str(error)) from error
    if len(text) > MAX_BYTES or b"=" not in text or b"\x7fELF" in text[:4]:
        raise SourceError(
            path,
            "is not a VMCOREINFO text (lines of KEY=value)",
            hint="makedumpfile -g FILE -x vmlinux makes one; for the vmlinux itself use vmlinux=FILE",
        )
    return text
