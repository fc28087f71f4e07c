"""Rank bitmaps of billions of pages, read lazily.

A dump's bitmaps are not loaded: a 12 TiB dump has 384 MiB of each. `Bitmap` reads 512-byte chunks (4096 pfns)
when they are asked for and keeps a bounded number of them as Python integers, whose `bit_count` and shifts
answer rank and membership faster than any table. The rank index (8 bytes per 4096 pfns) is made by one pass
over the file at first need.

May be used from any thread; two threads may at worst read the same chunk twice.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator

from dumpfs.errors import SourceError
from dumpfs.units import Pfn

CHUNK_SHIFT = 12
CHUNK_PFNS = 1 << CHUNK_SHIFT
CHUNK_BYTES = CHUNK_PFNS // 8
_CHUNK_MASK = CHUNK_PFNS - 1
_FULL = (1 << CHUNK_PFNS) - 1

_MAX_CACHED_CHUNKS = 8192
"""About 5 MB of integers; covers 128 GiB of memory. Past that the cache is emptied and begins anew."""

_EMPTY_CHUNKS = 16
"""Chunks without members after which a listing of runs asks whether they lie in a hole of the file."""
_MAX_AHEAD = 64
"""Chunks that a listing of runs reads at once, when it goes on and on: 32 KiB."""
_SCAN_BYTES = 1 << 18
"""Bytes read at once by a pass over the whole bitmap."""

_MASKS = tuple((1 << i) - 1 for i in range(CHUNK_PFNS + 1))
"""_MASKS[i] keeps the low i bits; making these at each use would cost more than the count itself."""

_RANKS_OF_A_SCAN = _SCAN_BYTES // CHUNK_BYTES

BitReader = Callable[[int, int], bytes]
"""`read(offset, size)`: bytes of the bitmap, offset 0 holding pfn 0; short only at the end."""


class Bitmap:
    """A `PfnSet` over bitmap bytes, least significant bit first.

    Args:
        read: where the bytes come from.
        stop: one past the highest pfn; bits at or above it are ignored.
        next_data: `next_data(offset)` is the first offset from there on that may hold a set bit; None: all may.
    """

    def __init__(self, read: BitReader, stop: Pfn, next_data: Callable[[int], int] | None = None) -> None:
        self._read = read
        self._next_data = next_data
        self._stop = stop
        self._chunks: dict[int, int] = {}
        self._ranks: array[int] | None = None

    @classmethod
    def from_bytes(cls, data: bytes, stop: Pfn | None = None) -> Bitmap:
        """A bitmap held in memory."""
        return cls(lambda offset, size: data[offset : offset + size], 8 * len(data) if stop is None else stop)

    @property
    def stop(self) -> Pfn:
        """One past the highest pfn the bitmap covers."""
        return self._stop

    def _load(self, number: int) -> int:
        return self._keep(number, self._read(number * CHUNK_BYTES, CHUNK_BYTES))

    def _load_ahead(self, number: int, count: int) -> int:
        """A chunk, and those behind it by the same read: a listing wants them next, and storage may be slow."""
        if count == 1:
            return self._load(number)
        try:
            data = self._read(number * CHUNK_BYTES, count * CHUNK_BYTES)
        except SourceError:  # a bad sector behind it is not its trouble
            return self._load(number)
        bits = self._keep(number, data[:CHUNK_BYTES])
        for i in range(1, min(count, -(-len(data) // CHUNK_BYTES))):
            self._keep(number + i, data[i * CHUNK_BYTES : (i + 1) * CHUNK_BYTES])
        return bits

    def _keep(self, number: int, data: bytes) -> int:
        bits = int.from_bytes(data, "little")
        valid = self._stop - (number << CHUNK_SHIFT)
        if valid < CHUNK_PFNS:
            bits &= _MASKS[max(valid, 0)]
        if len(self._chunks) >= _MAX_CACHED_CHUNKS:
            self._chunks.clear()
        self._chunks[number] = bits
        return bits

    def __contains__(self, pfn: object) -> bool:
        if not isinstance(pfn, int) or not 0 <= pfn < self._stop:
            return False
        number = pfn >> CHUNK_SHIFT
        bits = self._chunks.get(number)
        if bits is None:
            bits = self._load(number)
        return bits >> (pfn & _CHUNK_MASK) & 1 == 1

    def find(self, pfn: Pfn) -> int:
        """Rank of `pfn` if it is a member, else -1: one look where `in` and `rank` would take two."""
        if not 0 <= pfn < self._stop:
            return -1
        number = pfn >> CHUNK_SHIFT
        bits = self._chunks.get(number)
        if bits is None:
            bits = self._load(number)
        low = pfn & _CHUNK_MASK
        if not bits >> low & 1:
            return -1
        return (self._ranks or self._build_ranks())[number] + (bits & _MASKS[low]).bit_count()

    def ranks(self) -> array[int]:
        """Members before each chunk of 4096 pfns, and of all; 64-bit."""
        return self._ranks or self._build_ranks()

    def count(self) -> int:
        """Number of members."""
        return (self._ranks or self._build_ranks())[-1]

    def rank(self, pfn: Pfn) -> int:
        """Number of members below `pfn`, i.e. the index of its page descriptor.

        `pfn` need not be a member. Values at or above the end give the total.
        """
        ranks = self._ranks or self._build_ranks()
        if pfn >= self._stop:
            return ranks[-1]
        if pfn <= 0:
            return 0
        number = pfn >> CHUNK_SHIFT
        bits = self._chunks.get(number)
        if bits is None:
            bits = self._load(number)
        return ranks[number] + (bits & _MASKS[pfn & _CHUNK_MASK]).bit_count()

    def _build_ranks(self) -> array[int]:
        ranks = array("Q")
        total = 0
        offset = data_offset = 0
        while offset * 8 < self._stop:
            if self._next_data and offset >= data_offset:
                data_offset = self._next_data(offset)
                empty = max(min(data_offset, self._stop // 8) - offset, 0) // _SCAN_BYTES
                if empty:  # a hole: a sparse file may be nothing else
                    ranks += array("Q", (total,)) * (empty * _RANKS_OF_A_SCAN)
                    offset += empty * _SCAN_BYTES
                    continue
            data = self._read(offset, _SCAN_BYTES)
            beyond = self._stop - 8 * offset
            if len(data) * 8 > beyond:  # drop the bits at and above the end
                kept = int.from_bytes(data, "little") & (1 << beyond) - 1
                data = kept.to_bytes((beyond + 7) // 8, "little")
            for position in range(0, _SCAN_BYTES, CHUNK_BYTES):
                piece = data[position : position + CHUNK_BYTES]
                if not piece and offset * 8 + position * 8 >= self._stop:
                    break
                ranks.append(total)
                total += int.from_bytes(piece, "little").bit_count()
            offset += _SCAN_BYTES
        ranks.append(total)
        self._ranks = ranks
        return ranks

    def select(self, index: int) -> Pfn:
        """The member with `index` members below it, or `stop` when there are no more than `index`."""
        ranks = self._ranks or self._build_ranks()
        if index >= ranks[-1]:
            return self._stop
        low, high = 0, len(ranks) - 1
        while high - low > 1:
            middle = (low + high) // 2
            if ranks[middle] <= index:
                low = middle
            else:
                high = middle
        base = low << CHUNK_SHIFT
        a, b = base, min(base + CHUNK_PFNS, self._stop)
        while a < b:
            middle = (a + b) // 2
            if self.rank(middle + 1) > index:
                b = middle
            else:
                a = middle + 1
        return a

    def runs(self, first: Pfn = 0, stop: Pfn | None = None) -> Iterator[tuple[Pfn, Pfn]]:
        """Maximal runs of members within `[first, stop)`."""
        stop = self._stop if stop is None else min(stop, self._stop)
        pfn = max(first, 0)
        start = -1  # first pfn of the run being gathered
        empty = 0  # chunks without members in a row
        ahead = 1  # chunks to read at once
        while pfn < stop:
            number = pfn >> CHUNK_SHIFT
            base = number << CHUNK_SHIFT
            bits = self._chunks.get(number)
            if bits is None:
                bits = self._load_ahead(number, ahead)
                ahead = min(2 * ahead, _MAX_AHEAD)
            size = min(CHUNK_PFNS, stop - base)
            position = pfn - base
            if (start < 0 and not bits) or (start >= 0 and bits == _FULL):
                pfn = base + size
                empty += not bits
                if empty == _EMPTY_CHUNKS:
                    empty = 0
                    pfn = self._behind_hole(pfn)
                continue
            empty = 0
            while position < size:
                rest = bits >> position
                if start < 0:
                    if not rest:
                        break
                    position += (rest & -rest).bit_length() - 1
                    if position >= size:
                        break
                    start = base + position
                    rest = bits >> position
                position += (~rest & (rest + 1)).bit_length() - 1
                if position < size:
                    yield start, base + position
                    start = -1
            pfn = base + size
        if start >= 0:
            yield start, stop

    def _behind_hole(self, pfn: Pfn) -> Pfn:
        """The first pfn from `pfn` on, which begins a chunk, that does not lie in a hole of the file; of a chunk."""
        if self._next_data is None:
            return pfn
        return max(pfn, min(8 * self._next_data(pfn // 8), self._stop) & ~_CHUNK_MASK)

    def members(self, first: Pfn = 0) -> Iterator[Pfn]:
        """Every member from `first` on, ascending; for listings, at some 0.1 us each."""
        for a, b in self.runs(first):
            yield from range(a, b)

    def read_bits(self, offset: int, size: int) -> bytes:
        """See `PfnSet.read_bits`."""
        size = max(min(size, (self._stop + 7) // 8 - offset), 0)
        data = self._read(offset, size)
        data += bytes(size - len(data))
        spare = (offset + size) * 8 - self._stop
        if size and spare > 0:  # bits above the end, in the last byte
            data = data[:-1] + bytes((data[-1] & 0xFF >> spare,))
        return data
