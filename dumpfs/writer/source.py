"""What is written from: any dump, in kernel pages, and a dumpfs mount seen for what it is.

A mounted `/vmcore` shows left-out pages as zeros. Written from as it stands, they would become zero pages of the new
dump, so a source inside a mount gets its page states from the mount's /bitmaps and the rest from its /info.json.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from dumpfs.bitmap import Bitmap
from dumpfs.errors import DumpfsError, SourceError, UnsupportedFeatureError
from dumpfs.formats import open_image
from dumpfs.formats.base import Blob, DumpImage, DumpMeta, PageInfo
from dumpfs.ranges import PfnSet, RangeSet, ScaledSet
from dumpfs.sources.local import FileSource
from dumpfs.units import PageState, Pfn
from dumpfs.writer.plan import Eraser

FUSE_TYPE = "fuse.dumpfs"
_MOUNTINFO = "/proc/self/mountinfo"
_PROBE_PAGES = 1024
_MAX_INFO = 16 << 20
_STORED, _EXCLUDED, _PARTIAL = PageState.STORED, PageState.EXCLUDED, PageState.PARTIAL


class WrappedImage:
    """An image with some of its facts replaced; reads go to the one inside."""

    def __init__(self, inner: DumpImage, meta: DumpMeta) -> None:
        self.inner = inner
        self.meta = meta
        self.ram: PfnSet = inner.ram
        self.stored: PfnSet = inner.stored
        self.lost: PfnSet = inner.lost
        self.partial: Mapping[Pfn, tuple[int, int]] = inner.partial
        self.notices = inner.notices

    def state(self, pfn: Pfn) -> PageState:
        """See `DumpImage.state`."""
        return self.inner.state(pfn)

    def info(self, pfn: Pfn) -> PageInfo:
        """See `DumpImage.info`."""
        return self.inner.info(pfn)

    def read_page(self, pfn: Pfn) -> tuple[bytes, PageState, str]:
        """See `DumpImage.read_page`."""
        return self.inner.read_page(pfn)

    def read_run(self, first: Pfn, count: int) -> tuple[bytes, bytes]:
        """See `DumpImage.read_run`."""
        return self.inner.read_run(first, count)

    def stored_blobs(self, first: Pfn, count: int) -> list[Blob]:
        """See `DumpImage.stored_blobs`; never compressed."""
        data, states = self.read_run(first, count)
        size = self.meta.block_size
        return [
            Blob(PageState(s), 0, data[i * size : (i + 1) * size] if s in (_STORED, _PARTIAL) else b"")
            for i, s in enumerate(states)
        ]

    def notes(self) -> bytes:
        """See `DumpImage.notes`."""
        return self.inner.notes()

    def vmcoreinfo_text(self) -> bytes | None:
        """See `DumpImage.vmcoreinfo_text`."""
        return self.inner.vmcoreinfo_text()

    def eraseinfo(self) -> bytes:
        """See `DumpImage.eraseinfo`."""
        return self.inner.eraseinfo()

    def changes(self) -> list[str]:
        """See `DumpImage.changes`."""
        return self.inner.changes()

    def close(self) -> None:
        """See `DumpImage.close`."""
        self.inner.close()


class PagedImage(WrappedImage):
    """An image of large blocks (QEMU's arm64 and ppc64 dumps: 64 KiB) in kernel pages.

    Args:
        inner: the image.
        page_size: bytes of a kernel page; divides the block.
    """

    def __init__(self, inner: DumpImage, page_size: int) -> None:
        scale = inner.meta.block_size // page_size
        super().__init__(inner, replace(inner.meta, block_size=page_size, max_pfn=inner.meta.max_pfn * scale))
        self._scale = scale
        self.ram = ScaledSet(inner.ram, scale)
        self.stored = ScaledSet(inner.stored, scale)
        self.lost = ScaledSet(inner.lost, scale)
        self.partial = self._scaled_partial(page_size)

    def _scaled_partial(self, page_size: int) -> dict[Pfn, tuple[int, int]]:
        found: dict[Pfn, tuple[int, int]] = {}
        for block, (first, stop) in self.inner.partial.items():
            for i in range(self._scale):
                low, high = max(first - i * page_size, 0), min(stop - i * page_size, page_size)
                if (low, high) != (0, page_size):
                    found[block * self._scale + i] = (low, max(high, low))
        return found

    def state(self, pfn: Pfn) -> PageState:
        """See `DumpImage.state`."""
        return self.inner.state(pfn // self._scale)

    def info(self, pfn: Pfn) -> PageInfo:
        """See `DumpImage.info`; of the block that holds the page."""
        return self.inner.info(pfn // self._scale)

    def read_page(self, pfn: Pfn) -> tuple[bytes, PageState, str]:
        """See `DumpImage.read_page`."""
        block, inside = divmod(pfn, self._scale)
        data, state, detail = self.inner.read_page(block)
        size = self.meta.block_size
        return data[inside * size : (inside + 1) * size], state, detail

    def read_run(self, first: Pfn, count: int) -> tuple[bytes, bytes]:
        """See `DumpImage.read_run`."""
        scale, size = self._scale, self.meta.block_size
        block = first // scale
        data, states = self.inner.read_run(block, -(-(first + count) // scale) - block)
        skip = first - block * scale
        wide = b"".join(bytes((state,)) * scale for state in states)
        return data[skip * size : (skip + count) * size], wide[skip : skip + count]


class ErasedImage(WrappedImage):
    """An image as its redacted dump will be.

    Args:
        inner: the image, in kernel pages.
        eraser: what overwrites.
    """

    def __init__(self, inner: DumpImage, eraser: Eraser) -> None:
        super().__init__(inner, inner.meta)
        self._eraser = eraser

    def read_page(self, pfn: Pfn) -> tuple[bytes, PageState, str]:
        """See `DumpImage.read_page`."""
        data, state, detail = self.inner.read_page(pfn)
        return (self._eraser.patch(pfn, data) if data else data), state, detail

    def read_run(self, first: Pfn, count: int) -> tuple[bytes, bytes]:
        """See `DumpImage.read_run`."""
        data, states = self.inner.read_run(first, count)
        return self._eraser.patch(first, data), states


class MountImage(WrappedImage):
    """The `/vmcore` of a dumpfs mount, with the mount's own word on what each page is.

    Args:
        inner: the image of the mounted vmcore.
        mount: the mount point.

    Raises:
        SourceError: the mount does not answer.
    """

    def __init__(self, inner: DumpImage, mount: str) -> None:
        info = _read_info(mount)
        dump = info.get("dump")
        facts: Mapping[str, object] = dump if isinstance(dump, dict) else {}
        level = facts.get("level")
        complete = bool(facts.get("complete", True)) and inner.meta.complete
        meta = replace(
            inner.meta,
            dump_level=level if isinstance(level, int) else None,
            complete=complete,
            incomplete_reason=str(facts.get("incomplete_reason") or inner.meta.incomplete_reason),
        )
        super().__init__(inner, meta)
        self._sources = [FileSource(os.path.join(mount, "bitmaps", name)) for name in ("ram", "stored")]
        ram, stored = (Bitmap(source.read_at, min(8 * source.size, meta.max_pfn)) for source in self._sources)
        self.ram, self.stored = ram, stored
        pages = info.get("pages")
        lost = pages.get("lost") if isinstance(pages, dict) else None
        self.lost = RangeSet() if complete or lost == 0 else RangeSet(self._find_lost())

    def _find_lost(self) -> Iterable[tuple[Pfn, Pfn]]:
        """Pages that are not stored and cannot be read either: those that were only left out read as zeros."""
        for low, high in self.ram.runs(0, self.meta.max_pfn):
            position = low
            for first, stop in (*self.stored.runs(low, high), (high, high)):
                while position < first:
                    count = min(first - position, _PROBE_PAGES)
                    _, states = self.inner.read_run(position, count)
                    for i, state in enumerate(states):
                        if state in (PageState.LOST, PageState.CORRUPT):
                            yield position + i, position + i + 1
                    position += count
                position = stop

    def state(self, pfn: Pfn) -> PageState:
        """See `DumpImage.state`."""
        if pfn in self.stored:
            return self.inner.state(pfn)
        if pfn in self.lost:
            return PageState.LOST
        return PageState.EXCLUDED if pfn in self.ram else PageState.ABSENT

    def read_page(self, pfn: Pfn) -> tuple[bytes, PageState, str]:
        """See `DumpImage.read_page`."""
        if pfn in self.stored:
            return self.inner.read_page(pfn)
        return b"", self.state(pfn), ""

    def read_run(self, first: Pfn, count: int) -> tuple[bytes, bytes]:
        """See `DumpImage.read_run`."""
        data, states = self.inner.read_run(first, count)
        stop = first + count
        if next(self.stored.runs(first, stop), None) == (first, stop):
            return data, states
        known = bytearray((PageState.ABSENT,)) * count
        for state, members in ((_EXCLUDED, self.ram), (PageState.LOST, self.lost)):
            for a, b in members.runs(first, stop):
                known[a - first : b - first] = bytes((state,)) * (b - a)
        for a, b in self.stored.runs(first, stop):
            known[a - first : b - first] = states[a - first : b - first]
        return data, bytes(known)

    def close(self) -> None:
        """See `DumpImage.close`."""
        super().close()
        for source in self._sources:
            source.close()


def open_source(paths: Sequence[str], *, readers: int = 0) -> DumpImage:
    """The dump that `paths` name: see `formats.open_image`; also a dumpfs mount point or what lies in one.

    Args:
        paths: files, or a folder.
        readers: processes that will go through it together; see `FileSource`.

    Raises:
        DumpfsError: as `open_image`.
        UnsupportedFeatureError: a file of a mount that is not its vmcore.
    """
    mount = find_mount(paths[0]) if len(paths) == 1 else None
    if mount is None:
        return open_image(paths, readers=readers)
    path = os.path.realpath(paths[0])
    if path not in (mount, os.path.join(mount, "vmcore")):
        raise UnsupportedFeatureError(
            paths[0],
            "a dump is written from a mount's /vmcore, not from its other files",
            hint=f"name {os.path.join(mount, 'vmcore')} or {mount}",
        )
    image = open_image([os.path.join(mount, "vmcore")])
    try:
        return MountImage(image, mount)
    except DumpfsError:
        image.close()
        raise


def in_kernel_pages(image: DumpImage, page_size: int) -> DumpImage:
    """`image` itself, or seen in pages of `page_size` bytes where its blocks are larger."""
    block_size = image.meta.block_size
    if page_size >= block_size or block_size % page_size:
        return image
    return PagedImage(image, page_size)


def find_mount(path: str) -> str | None:
    """The dumpfs mount point that `path` lies in, or None."""
    real = os.path.realpath(path)
    best, kind = "", ""
    try:
        with open(_MOUNTINFO, encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                left, _, right = line.partition(" - ")
                point = _unescape(left.split(" ")[4])
                inside = real == point or real.startswith(point.rstrip("/") + "/")
                if inside and len(point) >= len(best):
                    best, kind = point, right.split(" ")[0]
    except OSError:
        return None  # no /proc: a chroot; then a mount cannot be told apart
    return best if kind == FUSE_TYPE else None


def _unescape(text: str) -> str:
    """A path of mountinfo, where blanks and backslashes are octal."""
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, char)
    return text


def _read_info(mount: str) -> Mapping[str, object]:
    path = os.path.join(mount, "info.json")
    try:
        with open(path, "rb") as file:
            info = json.loads(file.read(_MAX_INFO))
    except OSError as exc:
        raise SourceError(path, exc.strerror or str(exc)) from exc
    except ValueError as exc:
        raise SourceError(path, f"is not JSON: {exc}") from exc
    if not isinstance(info, dict):
        raise SourceError(path, "is not a JSON object")
    return info
