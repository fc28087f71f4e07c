"""Physical memory of the dumped machine, in kernel pages.

The only place that knows the hole policy: what a reader gets for a page that has no content. Lost and corrupt
pages are never zeros. Any thread may read.
"""

from __future__ import annotations

from enum import Enum

from dumpfs.errors import PageError, page_error
from dumpfs.formats.base import DumpImage, PageInfo, PlainImage, PlainPages
from dumpfs.memory.cache import PageCache
from dumpfs.ranges import PfnSet, ScaledSet
from dumpfs.units import PageState, Pfn, zeros

_FILL = bytes((PageState.EXCLUDED, PageState.ABSENT))
_GOOD = bytes((PageState.STORED, PageState.PARTIAL))
_READ_BYTES = 8 << 20
"""Memory taken from the image at once: bounds what any single read decodes before it can fail."""


class HolePolicy(Enum):
    """What reading excluded and absent memory yields."""

    ZERO = "zero"
    ERROR = "error"


class PhysMemory:
    """Bytes by physical address.

    Args:
        image: the dump.
        page_size: the kernel's page size in bytes; must divide `image.meta.block_size`.
        policy: for excluded and absent pages. Kernel structures are always read with ERROR: a zero
            that stands for missing memory is not a null pointer.
        cache: decoded blocks, shared by every view of the same image.
    """

    def __init__(self, image: DumpImage, page_size: int, policy: HolePolicy, cache: PageCache | None = None) -> None:
        meta = image.meta
        if page_size > meta.block_size or meta.block_size % page_size:
            page_size = meta.block_size
        self.image = image
        self.page_size = page_size
        self.page_shift = page_size.bit_length() - 1
        self.policy = policy
        self.cache = cache if cache is not None else PageCache()
        self._block_size = meta.block_size
        self._first_paddr = meta.first_paddr
        scale = meta.block_size // page_size
        shift = meta.first_paddr >> self.page_shift
        direct = scale == 1 and shift == 0
        self.ram: PfnSet = image.ram if direct else ScaledSet(image.ram, scale, shift)
        """Kernel pages that are RAM."""
        self.stored: PfnSet = image.stored if direct else ScaledSet(image.stored, scale, shift)
        """Kernel pages whose content is in the dump."""

    @property
    def size(self) -> int:
        """One past the highest physical address of RAM, in bytes (rounded up to a page)."""
        return self.ram.stop << self.page_shift

    def plain_pages(self) -> PlainPages | None:
        """Where the pages are, if that is simple and their numbers count from physical address 0."""
        if self._first_paddr or not isinstance(self.image, PlainImage):
            return None
        return self.image.plain_pages()

    def with_policy(self, policy: HolePolicy) -> PhysMemory:
        """The same memory and cache under another policy."""
        if policy is self.policy:
            return self
        return PhysMemory(self.image, self.page_size, policy, self.cache)

    def _block(self, paddr: int) -> Pfn:
        return (paddr - self._first_paddr) // self._block_size

    def state(self, pfn: Pfn) -> PageState:
        """State of a kernel page, without decoding it."""
        return self.image.state(self._block(pfn << self.page_shift))

    def info(self, pfn: Pfn) -> PageInfo:
        """Where and how the block that holds a kernel page is stored."""
        return self.image.info(self._block(pfn << self.page_shift))

    def read_page(self, pfn: Pfn) -> bytes:
        """Content of one kernel page, whatever the policy.

        Raises:
            PageError: it has none.
        """
        paddr = pfn << self.page_shift
        block = self._block(paddr)
        data = self.cache.get(block) or self._load_block(block, HolePolicy.ERROR, pfn)
        if self.page_size == self._block_size:
            return data
        inside = (paddr - self._first_paddr) % self._block_size
        return data[inside : inside + self.page_size]

    def _load_block(self, block: Pfn, policy: HolePolicy, pfn: Pfn) -> bytes:
        """A block that is not in the cache."""
        if block < 0:
            state, detail = PageState.ABSENT, ""
        else:
            data, state, detail = self.image.read_page(block)
            if data:
                self.cache.put(block, data)
                return data
        if policy is HolePolicy.ZERO and state in (PageState.EXCLUDED, PageState.ABSENT):
            return zeros(self._block_size)
        raise page_error(pfn, state, detail)

    def read(self, paddr: int, size: int) -> bytes:
        """`size` bytes at physical address `paddr`; the range may lie anywhere and be of any length.

        Raises:
            PageError: a page of the range is lost or corrupt, or the policy is ERROR and one is excluded
                or absent. Nothing is returned then: half a request is no answer.
        """
        if size <= 0:
            return b""
        block_size = self._block_size
        offset = paddr - self._first_paddr
        block, inside = divmod(offset, block_size)
        if inside + size <= block_size:
            data = self.cache.get(block) or self._load_block(block, self.policy, paddr >> self.page_shift)
            return data if size == block_size else data[inside : inside + size]
        last = (offset + size - 1) // block_size
        pieces = []
        if block < 0:  # below the image's first address: not RAM
            if self.policy is HolePolicy.ERROR:
                raise page_error(paddr >> self.page_shift, PageState.ABSENT)
            below = min(size, -offset)
            return zeros(below) + self.read(paddr + below, size - below)
        while block <= last:
            count = min(last - block + 1, _READ_BYTES // block_size)
            pieces.append(self._read_run(block, count))
            block += count
        if len(pieces) == 1 and not inside and len(pieces[0]) == size:
            return pieces[0]
        return b"".join(pieces)[inside : inside + size]

    def _read_run(self, first: Pfn, count: int) -> bytes:
        data, states = self.image.read_run(first, count)
        allowed = _GOOD + _FILL if self.policy is HolePolicy.ZERO else _GOOD
        if states.translate(None, allowed):
            index = next(i for i, s in enumerate(states) if s not in allowed)
            raise self._error(first + index, PageState(states[index]))
        return data

    def _error(self, block: Pfn, state: PageState) -> PageError:
        pfn = (self._first_paddr + block * self._block_size) >> self.page_shift
        # A run says only which page is bad; the page by itself says why.
        detail = self.image.read_page(block)[2] if state in (PageState.LOST, PageState.CORRUPT) else ""
        return page_error(pfn, state, detail)
