"""A flattened stream reads as the file it stands for."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dumpfs.errors import CorruptDumpError, DumpfsError, SourceError, TruncatedDumpError, UnsupportedFeatureError
from dumpfs.formats.kdump.image import KdumpImage
from dumpfs.sources.flattened import FlattenedSource, probe
from dumpfs.sources.local import MemorySource
from dumpfs.units import PageState
from tests.build.flat import END_MARK, HEADER_SIZE, flat_header, flatten, record, wrap
from tests.build.kdump import KdumpSpec, build_kdump
from tests.build.model import Memory, Page
from tests.work import bounded_work

RECORDS = st.lists(st.tuples(st.integers(0, 300), st.binary(min_size=1, max_size=60)), min_size=1, max_size=25)


def opened(data: bytes) -> FlattenedSource:
    return FlattenedSource(MemorySource(data, "flat"))


def applied(records: list[tuple[int, bytes]]) -> bytes:
    """What the records say, written one after the other."""
    out = bytearray(max(o + len(d) for o, d in records))
    for offset, data in records:
        out[offset : offset + len(data)] = data
    return bytes(out)


@given(RECORDS, st.integers(0, 400), st.integers(0, 400))
def test_any_records_read_as_if_applied_in_order(records, offset, size):
    source = opened(wrap(records))
    whole = applied(records)
    assert source.complete
    assert source.size == len(whole)
    assert source.read_at(0, len(whole) + 9) == whole
    assert source.read_at(offset, size) == whole[offset : offset + size]
    buffer = bytearray(b"?" * size)
    done = source.read_into(offset, memoryview(buffer))
    assert buffer[:done] == whole[offset : offset + size]
    assert buffer[done:] == b"?" * (size - done)


@given(RECORDS, st.data())
def test_stream_cut_anywhere_serves_what_it_has_and_says_so(records, data):
    stream = wrap(records)
    cut = data.draw(st.integers(HEADER_SIZE + 17, len(stream) - 1))
    source = opened(stream[:cut])
    left = cut - HEADER_SIZE
    kept = []
    for offset, payload in records:
        piece = payload[: max(left - 16, 0)]
        left -= 16 + len(payload)
        if piece:
            kept.append((offset, piece))
    assert source.read_at(0, source.size) == applied(kept)
    assert not source.complete
    assert "flattened stream" in source.incomplete_reason


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shuffle", [False, True], ids=["ascending", "shuffled"])
def test_payload_in_records_of_all_sizes_comes_back(seed, shuffle):
    payload = bytes(range(256)) * 2000 + b"end"
    for largest in (3, 700, 90_000):
        source = opened(flatten(payload[: largest * 300], seed, largest=largest, shuffle=shuffle, overlaps=20))
        assert source.read_at(0, len(payload)) == payload[: largest * 300]


def test_bytes_without_a_record_are_zero():
    source = opened(wrap([(10, b"a"), (20, b"b")]))
    assert source.read_at(0, 21) == bytes(10) + b"a" + bytes(9) + b"b"


def test_later_record_wins():
    assert opened(wrap([(0, b"aaaa"), (1, b"bb"), (0, b"c")])).read_at(0, 4) == b"cbba"


def test_name_change_and_close_are_the_files():
    class Inner(MemorySource):
        closed = False

        def change(self):
            return "grown"

        def close(self):
            self.closed = True

    inner = Inner(wrap([(0, b"x")]), "dump.flat")
    source = FlattenedSource(inner)
    assert (source.name, source.change()) == ("dump.flat", "grown")
    source.close()
    assert inner.closed


def test_file_cut_after_opening_reads_short():
    class Shrinking(MemorySource):
        def cut(self, size):
            self._data = self._data[:size]

    inner = Shrinking(wrap([(0, b"a" * 50), (50, b"b" * 50), (200, b"c" * 50)]))
    source = FlattenedSource(inner)
    inner.cut(HEADER_SIZE + 16 + 50 + 16 + 20)
    assert source.read_at(0, 250) == b"a" * 50 + b"b" * 20
    assert source.read_into(60, memoryview(bytearray(190))) == 10


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (struct.pack(">qq", -2, 5), "record 1"),
        (struct.pack(">qq", 5, 0), "record 1"),
        (struct.pack(">qq", 5, -1), "record 1"),
        (struct.pack(">qq", -1, 5), "record 1"),
        (struct.pack(">qq", 1 << 62, 5), "record 1"),
        (b"", "no end mark"),
        (b"\xff" * 15, "no end mark"),
    ],
)
def test_what_precedes_an_impossible_record_is_served(bad, complaint):
    source = opened(flat_header() + record(0, b"good") + bad)
    assert source.read_at(0, 10) == b"good"
    assert not source.complete
    assert complaint in source.incomplete_reason


@pytest.mark.parametrize(("step", "size"), [(1, 1), (-2, 1), (-40, 20)])
def test_stream_of_countless_tiny_records_is_refused(step, size):
    with pytest.raises(CorruptDumpError, match=r"has \d+ records, in \d+ places, in its first \d+ bytes"):
        opened(flat_header() + b"".join(record(10_000_000 + step * i, b"x" * size) for i in range(200_000)))


def test_many_scattered_records_of_some_size_are_served():
    source = opened(flat_header() + b"".join(record(512 * i, b"x" * 256) for i in range(70_000)))
    assert source.record_count == 70_000


@pytest.mark.parametrize("size", [16, 31, 4095, 4096])
def test_stream_cut_in_its_header_is_told_so(size):
    with pytest.raises(TruncatedDumpError, match=rf"ends in its header \({size} bytes\)"):
        opened(flat_header()[:size])


def test_impossible_first_record_is_refused_with_its_place():
    with pytest.raises(CorruptDumpError, match=r"record 0 .* at offset 0x1000"):
        opened(flat_header() + struct.pack(">qq", -7, 5) + bytes(5))


@pytest.mark.parametrize("stream", [flat_header() + END_MARK, flat_header() + record(0, b"x" * 9)[:16]])
def test_stream_without_a_byte_of_payload_is_refused(stream):
    with pytest.raises(CorruptDumpError, match="holds no record"):
        opened(stream)


@pytest.mark.parametrize("size", [4096, 32, 100])
def test_stream_that_ends_in_its_header_is_truncated(size):
    with pytest.raises(TruncatedDumpError):
        opened(flat_header()[:size])


@pytest.mark.parametrize("size", [0, 5, 31])
def test_header_cut_short_is_refused(size):
    with pytest.raises(DumpfsError):
        opened(flat_header()[:size])


@pytest.mark.parametrize(("kind", "version"), [(2, 1), (1, 2), (0, 1), (-1, -1)])
def test_other_types_and_versions_are_refused(kind, version):
    head = (b"makedumpfile\0\0\0\0" + struct.pack(">qq", kind, version)).ljust(HEADER_SIZE, b"\0")
    with pytest.raises(UnsupportedFeatureError, match=f"type {kind}, version {version}"):
        opened(head + record(0, b"x") + END_MARK)


def test_bytes_after_the_end_mark_are_ignored():
    source = opened(wrap([(0, b"x")]) + b"trailing bytes of a pipe")
    assert source.complete
    assert source.size == 1


def test_many_records_are_followed_with_few_calls():
    payloads = [b"p" * (30 + i % 50) for i in range(200_000)]
    pieces, position = [flat_header()], 0
    for payload in payloads:
        pieces.append(record(position, payload))
        position += len(payload)
    stream = b"".join(pieces) + END_MARK
    with bounded_work(1_000_000):  # measured: at most 400,204
        source = opened(stream)
    assert source.record_count == 200_000
    assert source.size == position


@pytest.mark.parametrize(("head", "answer"), [(flat_header(), True), (b"makedumpfile\0\0", False), (b"", False)])
def test_probe_never_raises(head, answer):
    assert probe(head) is answer


def test_stream_that_is_nearly_all_gap_is_refused():
    with pytest.raises(CorruptDumpError, match="holds 2 bytes, but places some of them at 0x4000000000001"):
        opened(wrap([(0, b"x"), (1 << 50, b"x")]))


class BadSector(MemorySource):
    """A disk of which some bytes cannot be read; whoever asks for one of them gets none."""

    bad = range(0)

    def read_at(self, offset, size):
        if offset < self.bad.stop and offset + size > self.bad.start:
            raise SourceError(self.name, f"reading at offset {offset:#x} failed: Input/output error")
        return super().read_at(offset, size)


ROWS = [(i * 1000, bytes([i + 1]) * 1000) for i in range(200)]


def test_bad_sector_in_a_payload_costs_what_lies_in_it():
    inner = BadSector(wrap(ROWS))
    begin = HEADER_SIZE + 100 * 1016 + 16 + 300
    inner.bad = range(begin, begin + 512)
    source = FlattenedSource(inner)
    assert source.complete
    assert source.record_count == 200
    assert source.read_at(100 * 1000, 300) == bytes([101]) * 300
    assert source.read_at(101 * 1000, 99_000) == b"".join(data for _, data in ROWS[101:])
    with pytest.raises(SourceError):
        source.read_at(100 * 1000 + 299, 2)


@pytest.mark.parametrize("inside", [0, 8, 15])
def test_bad_sector_in_a_record_header_ends_the_stream_there(inside):
    inner = BadSector(wrap(ROWS))
    begin = HEADER_SIZE + 100 * 1016 + inside
    inner.bad = range(begin, begin + 1)
    source = FlattenedSource(inner)
    assert not source.complete
    assert "record 100 of the flattened stream cannot be read (" in source.incomplete_reason
    assert "Input/output error" in source.incomplete_reason
    assert source.read_at(0, 200_000) == b"".join(data for _, data in ROWS[:100])


def test_bad_sector_at_the_first_record_leaves_nothing_to_serve():
    inner = BadSector(wrap(ROWS))
    inner.bad = range(HEADER_SIZE, HEADER_SIZE + 1)
    with pytest.raises(SourceError):
        FlattenedSource(inner)


def test_dump_behind_a_flattened_stream_with_a_bad_sector_is_read_but_for_its_pages():
    memory = Memory(4096, 60, {pfn: Page(bytes([pfn + 1]) * 4096) for pfn in range(60)})
    stream = flatten(build_kdump(memory, KdumpSpec()).data, 1, largest=30_000)
    whole = KdumpImage.open([FlattenedSource(MemorySource(stream))])
    lost = 0
    for begin in range(len(stream) // 2, len(stream) - 5000, 20_011):
        inner = BadSector(stream)
        inner.bad = range(begin, begin + 4096)
        image = KdumpImage.open([FlattenedSource(inner)])
        for pfn in range(60):
            data, state, why = image.read_page(pfn)
            assert data == whole.read_page(pfn)[0] or (state in (PageState.LOST, PageState.CORRUPT) and why)
            lost += state is not PageState.STORED
    assert lost
