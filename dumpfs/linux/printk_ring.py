"""The printk ring buffer of Linux 5.10 and later.

    prb -> descriptor ring: state, and where the text is     infos: time, length, level     data ring: id, text, id ...

Positions in the data ring (lpos) only grow; their low bits index the ring. A block that would cross the ring's end is
put at its start instead. The crashed kernel may have been in the middle of any of this, and the dump may be hostile:
each record is checked against its descriptor's id, and no loop depends on what a record says.

Sources: Linux kernel/printk/printk_ringbuffer.[ch] (states, ids, blocks), kernel/printk/printk.c (VMCOREINFO keys).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from dumpfs.errors import CorruptDumpError, VmcoreinfoError
from dumpfs.linux.logrecord import LogGap, LogRecord, LogReport, split_level
from dumpfs.memory.virtual import AddressSpace, SparseReader
from dumpfs.vmcoreinfo import Vmcoreinfo

_COMMITTED, _FINALIZED = 1, 2
"""Descriptor states, in the top two bits of the state word, whose text is whole."""
_MAX_BITS = 31
_MAX_RECORDS = 1 << 21
"""Records walked: a log of 64 MiB; log_buf_len= allows more, of which the newest are shown."""
_MAX_STRUCT = 4096
_PAGE = 0x1000
"""Bytes: no kernel has smaller pages."""
_NAME = "the printk ring"


@dataclass(frozen=True, slots=True)
class _Layout:
    """Sizes and offsets from VMCOREINFO, in bytes, checked to lie inside their structures."""

    word: int
    desc_size: int
    state: int
    begin: int
    next: int
    info_size: int
    seq: int
    ts: int
    text_len: int
    caller: int | None
    subsystem: tuple[int, int] | None
    device: tuple[int, int] | None
    """(offset, bytes) in the info."""


@dataclass(frozen=True, slots=True)
class _Ring:
    """The ring's own fields."""

    layout: _Layout
    count: int
    """Descriptors; a power of two."""
    tail: int
    """Id of the oldest record."""
    head: int
    descs: SparseReader
    infos: SparseReader
    data: SparseReader
    data_bits: int


def iter_ring(space: AddressSpace, info: Vmcoreinfo, report: LogReport) -> Iterator[LogRecord | LogGap]:
    """Records of the ring, oldest first, and gaps where they are missing; what cannot be had is counted in `report`.

    Raises:
        DumpfsError: the ring itself cannot be read or makes no sense.
    """
    ring = _open(space, info)
    id_mask = (1 << (8 * ring.layout.word - 2)) - 1
    records = ((ring.head - ring.tail) & id_mask) + 1
    if records > min(ring.count, _MAX_RECORDS):
        if records > ring.count:
            report.sentences.append(f"the log's head {ring.head:#x} and tail {ring.tail:#x} do not fit together")
        records = min(ring.count, _MAX_RECORDS)
        report.sentences.append(f"only the newest {records} log records are looked at")
    first = (ring.head - records + 1) & id_mask
    room = 1 << ring.data_bits
    for found in _descriptors(ring, space.byteorder, first, records, id_mask):
        if isinstance(found, LogGap):
            yield found
            continue
        number, begin, next_ = found
        block = _block(ring, begin, next_)
        if block is None:
            if begin & next_ & 1 and begin & next_ & 2 == 0:
                report.count("that had no room for their text")
            elif not (begin & next_ & 1):
                report.count("with an impossible place in the ring")
            continue
        place = number % ring.count * ring.layout.info_size, ring.layout.info_size
        raw = ring.infos.read(*place)
        if raw is None:
            yield LogGap(1, "time and length are not in the dump", ring.infos.why(*place))
            continue
        word = ring.layout.word
        offset, size = block
        length = min(int.from_bytes(raw[ring.layout.text_len :][:2], space.byteorder), size - word)
        text = ring.data.read(offset, word + length)
        if text is None:
            yield LogGap(1, "the text is not in the dump", ring.data.why(offset, word + length))
            continue
        if int.from_bytes(text[:word], space.byteorder) != number:
            report.count("whose text was overwritten")
            continue
        room -= size
        if room < 0:  # blocks of a sound ring do not overlap
            report.sentences.append("the log records' texts overlap: the rest is left out")
            return
        yield _record(ring.layout, raw, text[word:], space.byteorder == "little")


def _open(space: AddressSpace, info: Vmcoreinfo) -> _Ring:
    layout = _read_layout(space, info)
    counter = info.offset("atomic_long_t.counter") or 0
    ring = space.read_word(info.need_symbol("prb"))
    desc_ring = ring + info.need_offset("printk_ringbuffer.desc_ring")
    data_ring = ring + info.need_offset("printk_ringbuffer.text_data_ring")
    count_bits = space.read_u32(desc_ring + info.need_offset("prb_desc_ring.count_bits"))
    data_bits = space.read_u32(data_ring + info.need_offset("prb_data_ring.size_bits"))
    if not 0 < count_bits <= _MAX_BITS or not 0 < data_bits <= _MAX_BITS:
        raise CorruptDumpError(_NAME, f"2^{count_bits} descriptors and 2^{data_bits} bytes of text are no sane sizes")
    count = 1 << count_bits
    descs = space.read_word(desc_ring + info.need_offset("prb_desc_ring.descs"))
    infos = space.read_word(desc_ring + info.need_offset("prb_desc_ring.infos"))
    data = space.read_word(data_ring + info.need_offset("prb_data_ring.data"))
    return _Ring(
        layout,
        count,
        space.read_word(desc_ring + info.need_offset("prb_desc_ring.tail_id") + counter),
        space.read_word(desc_ring + info.need_offset("prb_desc_ring.head_id") + counter),
        SparseReader(space, descs, count * layout.desc_size),
        SparseReader(space, infos, count * layout.info_size),
        SparseReader(space, data, 1 << data_bits),
        data_bits,
    )


def _read_layout(space: AddressSpace, info: Vmcoreinfo) -> _Layout:
    word = space.word_size
    desc_size = _checked("SIZE(prb_desc)", info.need_size("prb_desc"), 3 * word, _MAX_STRUCT)
    info_size = _checked("SIZE(printk_info)", info.need_size("printk_info"), 8, _MAX_STRUCT)
    position = info.need_offset("prb_desc.text_blk_lpos")
    state = info.need_offset("prb_desc.state_var") + (info.offset("atomic_long_t.counter") or 0)

    def inside(key: str, offset: int, width: int, size: int) -> int:
        return _checked(f"OFFSET({key})", offset, 0, size - width)

    text_len = info.need_offset("printk_info.text_len")
    caller = info.offset("printk_info.caller_id")
    return _Layout(
        word,
        desc_size,
        inside("prb_desc.state_var", state, word, desc_size),
        inside("prb_data_blk_lpos.begin", position + info.need_offset("prb_data_blk_lpos.begin"), word, desc_size),
        inside("prb_data_blk_lpos.next", position + info.need_offset("prb_data_blk_lpos.next"), word, desc_size),
        info_size,
        inside("printk_info.seq", info.offset("printk_info.seq") or 0, 8, info_size),
        inside("printk_info.ts_nsec", info.need_offset("printk_info.ts_nsec"), 8, info_size),
        inside("printk_info.text_len", text_len, 4, info_size),  # facility and flags follow it
        None if caller is None else inside("printk_info.caller_id", caller, 4, info_size),
        _device_field(info, "subsystem", info_size),
        _device_field(info, "device", info_size),
    )


def _device_field(info: Vmcoreinfo, name: str, info_size: int) -> tuple[int, int] | None:
    base, offset = info.offset("printk_info.dev_info"), info.offset(f"dev_printk_info.{name}")
    length = info.length(f"printk_info_{name}")
    if base is None or offset is None or length is None:
        return None
    return (base + offset, length) if base + offset >= 0 and 0 < length <= info_size - base - offset else None


def _checked(key: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise VmcoreinfoError(key, f"{value} is not between {low} and {high}")
    return value


def _descriptors(
    ring: _Ring, byteorder: str, first: int, records: int, id_mask: int
) -> Iterator[tuple[int, int, int] | LogGap]:
    """(id, begin, next) of the `records` descriptors from id `first` on whose text is whole; gaps where none are.

    Looked at in bulk: a ring of two million descriptors that are all stale takes well under a second.
    """
    layout = ring.layout
    code = "Q" if layout.word == 8 else "I"
    prefix = "<" if byteorder == "little" else ">"
    size, word = layout.desc_size, layout.word
    columns = [
        struct.Struct(f"{prefix}{at}x{code}{size - at - word}x") for at in (layout.state, layout.begin, layout.next)
    ]
    states, begins, nexts = columns
    id_bits = 8 * word - 2
    per_read = max(SparseReader.CHUNK // size, 1)
    number = first
    while records > 0:
        index = number % ring.count
        batch = min(per_read, records, ring.count - index)
        data = ring.descs.read(index * size, batch * size)
        if data is None:  # go on by what begins in this page, so that a missing page costs no more than its own
            left = _PAGE - (ring.descs.vaddr + index * size) % _PAGE
            batch = min(batch, max(left // size, 1))  # one that goes on in the next page may be lost with that
            data = ring.descs.read(index * size, batch * size)
        if data is None:
            why = ring.descs.why(index * size, batch * size)
            yield LogGap(batch, "the descriptors are not in the dump, of records or of none", why)
        elif data.count(0) != len(data):
            for i, (state,) in enumerate(states.iter_unpack(data)):
                if state & id_mask == (number + i) & id_mask and state >> id_bits in (_COMMITTED, _FINALIZED):
                    at = i * size
                    yield (number + i) & id_mask, begins.unpack_from(data, at)[0], nexts.unpack_from(data, at)[0]
        number = (number + batch) & id_mask
        records -= batch


def _block(ring: _Ring, begin: int, next_: int) -> tuple[int, int] | None:
    """(offset in the data ring, bytes) of the block at lpos `[begin, next_)`, or None when it has no text.

    A block wraps when its *last* byte lies in another turn of the ring than its first. Other tools compare the low bits
    of begin and next, which reads a block that ends precisely at the ring's end as wrapped; kernels leave such a block
    in place since 2025.
    """
    bits, word = ring.data_bits, ring.layout.word
    wrap = (1 << 8 * word) - 1
    size = 1 << bits
    if begin & (size - 1) == next_ & (size - 1):
        return None
    if begin >> bits == ((next_ - 1) & wrap) >> bits:
        offset, length = begin & (size - 1), (next_ - begin) & wrap
    else:
        offset, length = 0, next_ & (size - 1)
    return (offset, length) if word <= length <= size - offset else None


def _record(layout: _Layout, raw: bytes, text: bytes, little: bool) -> LogRecord:
    def number(offset: int, size: int) -> int:
        return int.from_bytes(raw[offset : offset + size], "little" if little else "big")

    def name(place: tuple[int, int] | None) -> str:
        if place is None:
            return ""
        return raw[place[0] : place[0] + place[1]].split(b"\0", 1)[0].decode("utf-8", "backslashreplace")

    facility, flags = raw[layout.text_len + 2], raw[layout.text_len + 3]
    return LogRecord(
        seq=number(layout.seq, 8),
        ts_nsec=number(layout.ts, 8),
        level=split_level(flags, little=little),
        facility=facility,
        caller_id=None if layout.caller is None else number(layout.caller, 4),
        text=text,
        subsystem=name(layout.subsystem),
        device=name(layout.device),
    )
