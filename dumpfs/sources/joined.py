"""Several sources end to end, as one."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from dumpfs.sources.base import ByteSource


class JoinedSource:
    """The bytes of some sources one after the other; takes them over. Any thread may read.

    Args:
        sources: at least one.
    """

    is_flattened = False
    incomplete_reason = ""

    def __init__(self, sources: Sequence[ByteSource]) -> None:
        self._sources = tuple(sources)
        self._starts = [0]
        for source in sources:
            self._starts.append(self._starts[-1] + source.size)

    @property
    def name(self) -> str:
        """All names."""
        return ", ".join(source.name for source in self._sources)

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self._starts[-1]

    def _at(self, offset: int) -> int:
        return bisect_right(self._starts, offset) - 1

    def read_at(self, offset: int, size: int) -> bytes:
        """See `ByteSource.read_at`; shorter also where a file has become shorter."""
        buffer = bytearray(max(min(size, self.size - offset), 0))
        return bytes(buffer[: self.read_into(offset, memoryview(buffer))])

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """See `ByteSource.read_into`."""
        done = 0
        while done < len(buffer) and offset + done < self.size:
            number = self._at(offset + done)
            inside = offset + done - self._starts[number]
            wanted = min(len(buffer) - done, self._sources[number].size - inside)
            got = self._sources[number].read_into(inside, buffer[done : done + wanted])
            done += got
            if got < wanted:
                break
        return done

    def next_data(self, offset: int) -> int:
        """See `ByteSource.next_data`."""
        for number in range(self._at(min(offset, self.size)), len(self._sources)):
            inside = max(offset - self._starts[number], 0)
            found = self._sources[number].next_data(inside)
            if found < self._sources[number].size:
                return self._starts[number] + found
        return self.size

    def next_hole(self, offset: int) -> int:
        """See `ByteSource.next_hole`."""
        for number in range(self._at(min(offset, self.size)), len(self._sources)):
            inside = max(offset - self._starts[number], 0)
            found = self._sources[number].next_hole(inside)
            if found < self._sources[number].size:
                return self._starts[number] + found
        return self.size

    def change(self) -> str | None:
        """See `ByteSource.change`; of the first that has changed."""
        for source in self._sources:
            change = source.change()
            if change is not None:
                return f"{source.name}: {change}"
        return None

    def close(self) -> None:
        """Close all."""
        for source in self._sources:
            source.close()
