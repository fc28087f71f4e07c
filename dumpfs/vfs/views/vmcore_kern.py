"""/vmcore-kern: /vmcore with the kernel's own memory only; pages of processes, files and the free list are left out.

What each page was used for is found out once, for all pages, when the file is first looked at: under a mount by a
helper process, which hands the workers one bit per page. A page that is left out is not even read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from dumpfs.elf.layout import ReadPhysical
from dumpfs.errors import DumpfsError, ExcludedPageError, ViewError, explain
from dumpfs.memory.physical import HolePolicy, PhysMemory
from dumpfs.ranges import PfnSet
from dumpfs.units import Pfn, zeros
from dumpfs.vfs.context import Dump
from dumpfs.vfs.views.vmcore import CoreFile, DumpCore, plan_dump_core
from dumpfs.vfs.views.vmcoreinfo import HINT, without_vmcoreinfo

if TYPE_CHECKING:
    from dumpfs.linux.kernel import Kernel

BLOCK_PFNS = 1 << 15
"""Pages whose bits are kept together: 128 MiB of memory, 4 KiB of bits."""
LEVEL = 31
"""The dump level that leaves out the same; zero pages are no matter for a reader."""
_HEAD = 8


class KernelMemory:
    """Physical memory in which only some pages have content; any thread may read.

    Args:
        phys: the memory.
        kept: by number of the block of `BLOCK_PFNS` pages, their bits, least significant first; a block that is not
            there has none.
    """

    def __init__(self, phys: PhysMemory, kept: Mapping[int, bytes | memoryview]) -> None:
        self._phys = phys
        self._kept = kept

    def read(self, paddr: int, size: int) -> bytes:
        """`size` bytes at `paddr`; pages that are left out are zeros.

        Raises:
            PageError: as `PhysMemory.read`; with the policy ERROR also for a page that is left out.
        """
        pieces = []
        page_size, shift = self._phys.page_size, self._phys.page_shift
        for first, stop, kept in self._runs(paddr >> shift, (paddr + size - 1 >> shift) + 1 if size > 0 else 0):
            low = max(first << shift, paddr)
            run = min(stop << shift, paddr + size) - low
            if kept:
                pieces.append(self._phys.read(low, run))
            elif self._phys.policy is HolePolicy.ERROR:
                # Memory that is no RAM is said to be that, by whoever knows.
                self._phys.read(low, min(run, page_size))
                raise ExcludedPageError(first)
            else:
                pieces.append(zeros(run))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _runs(self, first: Pfn, stop: Pfn) -> Iterator[tuple[Pfn, Pfn, bool]]:
        """Runs of pages that are all kept or all left out, ascending; a run ends with its block."""
        while first < stop:
            block, inside = divmod(first, BLOCK_PFNS)
            count = min(stop - first, BLOCK_PFNS - inside)
            bits = self._bits(block, inside, count)
            while count:
                kept = bits & 1
                # The lowest bit that differs ends the run.
                other = ~bits if kept else bits
                run = min((other & -other).bit_length() - 1, count) if other else count
                yield first, first + run, bool(kept)
                bits >>= run
                first += run
                count -= run

    def _bits(self, block: int, inside: int, count: int) -> int:
        mask = self._kept.get(block)
        if mask is None:
            return 0
        low, high = inside >> 3, inside + count + 7 >> 3
        return int.from_bytes(mask[low:high], "little") >> (inside & 7) & (1 << count) - 1


def find_kernel_pages(kernel: Kernel, stored: PfnSet) -> dict[int, bytes]:
    """Bits of the kernel's own pages, for `KernelMemory`.

    Args:
        kernel: the kernel.
        stored: kernel pages in the dump; blocks without any are passed over.

    Raises:
        DumpfsError: pages cannot be told apart.
    """
    from dumpfs.linux.pageclass import PageClassifier, keep_bits

    classifier = PageClassifier(kernel)
    found: dict[int, bytes] = {}
    for block in _blocks(stored):
        bits = keep_bits(classifier.classify(block * BLOCK_PFNS, BLOCK_PFNS), LEVEL)
        if bits:
            found[block] = bits
    return found


def _blocks(pages: PfnSet) -> Iterator[int]:
    """Numbers of the blocks that have a member, ascending."""
    size = BLOCK_PFNS // 8
    for block in range(-(-pages.stop // BLOCK_PFNS)):
        if pages.read_bits(block * size, size).strip(b"\0"):
            yield block


@dataclass(slots=True)
class VmcoreKernFile(CoreFile):
    """An ELF core of the kernel's own memory."""

    NAME: ClassVar[str] = "vmcore-kern"
    ABOUT: ClassVar[str] = (
        "vmcore with the kernel's own memory only: pages of processes, page cache, swap cache and free memory read as"
        " zeros, as if the dump had been made at level 31. Pages whose use is not known are kept. When it is first"
        " opened, the use of every page is found out, which takes a while for a large dump."
    )

    kept: Mapping[int, bytes | memoryview] = field(default_factory=dict, kw_only=True)
    """See `KernelMemory`."""

    @classmethod
    def missing(cls, dump: Dump) -> str | None:
        """See `tree.ViewClass`: whether pages can be told apart is known when the file is opened."""
        return without_vmcoreinfo(dump) or dump.inspection.missing()

    @classmethod
    def probe(cls, dump: Dump) -> None:
        """See `Node.probe`: it is known where the kernel says of each page what it was used for."""
        from dumpfs.linux.memmodel import find_memory_model

        find_memory_model(dump.need_kernel().deep)

    def memory(self) -> ReadPhysical:
        """See `CoreFile.memory`."""
        return KernelMemory(self.dump.phys, self.kept)

    def make(self) -> DumpCore:
        """See `CoreFile.make`."""
        dump = self.dump
        try:
            self.kept = find_kernel_pages(dump.need_kernel().deep, dump.phys.stored)
        except DumpfsError as exc:
            raise ViewError(f"vmcore-kern: {explain(exc)}", hint=HINT) from exc
        return plan_dump_core(dump, self.NAME)

    def stored_bytes(self) -> int:
        """See `FileNode.stored_bytes`."""
        pages = sum(int.from_bytes(mask, "little").bit_count() for mask in self.kept.values())
        return min(pages * self.dump.phys.page_size, self.dump.stored_bytes)

    def build(self) -> bytes | None:
        """See `FileNode.build`: length of a text of JSON, the text, the core, the bits."""
        core = CoreFile.build(self)
        assert core is not None
        head = json.dumps({"core": len(core), "blocks": list(self.kept)}).encode()
        return b"".join((len(head).to_bytes(_HEAD, "little"), head, core, *self.kept.values()))

    def adopt(self, data: memoryview | bytes) -> None:
        """See `FileNode.adopt`; the bits stay where they are, for they may be many."""
        view = memoryview(data)
        start = _HEAD + int.from_bytes(view[:_HEAD], "little")
        head = json.loads(bytes(view[_HEAD:start]))
        size = BLOCK_PFNS // 8
        bits = start + head["core"]
        self.kept = {block: view[bits + i * size : bits + (i + 1) * size] for i, block in enumerate(head["blocks"])}
        CoreFile.adopt(self, view[start:bits])
