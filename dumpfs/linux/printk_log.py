"""The kernel log before 5.10: a buffer of records (3.5 to 5.9), or of plain text (before 3.5).

    header (time, lengths, facility, level) | text | dictionary | padding       (a record of length 0: start over)

Sources: Linux 5.9 kernel/printk/printk.c (struct printk_log, log_first_idx ...), Linux 3.4 kernel/printk.c (log_end,
logged_chars), both as their VMCOREINFO tells them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from dumpfs.errors import CorruptDumpError, VmcoreinfoError
from dumpfs.linux.logrecord import LogGap, LogRecord, LogReport, split_level
from dumpfs.memory.virtual import AddressSpace, SparseReader
from dumpfs.structs import ByteOrder
from dumpfs.vmcoreinfo import Vmcoreinfo

_MAX_LOG = 1 << 31
"""LOG_BUF_LEN_MAX."""
_MAX_RECORDS = 1 << 20
"""Records walked: a log of 64 MiB."""
_MAX_TEXT_LOG = 64 << 20
"""Bytes of a text ring taken at once; kernels of that time allowed 2 MiB by configuration."""
_MAX_HEADER = 256
_ALIGN = 4
"""Of records at least (LOG_ALIGN)."""
_MAX_PADDING = 8
_PAGE = 0x1000
_MAX_TRIES = 1 << 16
"""Places behind a missing page that are tried as the next record: 256 KiB of buffer."""
_LINE = re.compile(rb"(?:<(\d+)>)?(?:\[ *(\d+)\.(\d{6})\] ?)?(.*)", re.DOTALL)


def is_record_log(info: Vmcoreinfo) -> bool:
    """Whether `log_buf` holds records."""
    return info.symbol("log_first_idx") is not None or _struct_name(info) is not None


def _struct_name(info: Vmcoreinfo) -> str | None:
    """`printk_log`, or what it was called before 3.11."""
    return next((name for name in ("printk_log", "log") if info.type_size(name) is not None), None)


@dataclass(frozen=True, slots=True)
class _Header:
    """The record header by VMCOREINFO, offsets in bytes, checked to lie inside it."""

    size: int
    ts_nsec: int
    len: int
    text_len: int
    dict_len: int
    """facility and flags follow it."""
    caller_id: int | None


def _read_header(info: Vmcoreinfo) -> _Header:
    name = _struct_name(info)
    if name is None:
        raise VmcoreinfoError("SIZE(printk_log)")
    ts_nsec, length, text_len = (info.need_offset(f"{name}.{m}") for m in ("ts_nsec", "len", "text_len"))
    dict_len = info.offset(f"{name}.dict_len")
    if dict_len is None:
        dict_len = text_len + 2
    caller = info.offset(f"{name}.caller_id")
    header = _Header(info.need_size(name), ts_nsec, length, text_len, dict_len, caller)
    ends = (ts_nsec + 8, length + 2, text_len + 2, dict_len + 4, (caller or 0) + 4)
    if not max(ends) <= header.size <= _MAX_HEADER or min(ts_nsec, length, text_len, dict_len, caller or 0) < 0:
        raise VmcoreinfoError(f"SIZE({name})", f"{header.size} does not fit its members")
    return header


def iter_record_log(space: AddressSpace, info: Vmcoreinfo, report: LogReport) -> Iterator[LogRecord | LogGap]:
    """Records of the log buffer, oldest first, and gaps where they are missing.

    The chain of records is followed until `log_next_idx`, once around at most: the lengths of all records together
    cannot exceed the buffer, which ends a walk that a damaged record has sent in circles.

    Raises:
        DumpfsError: the buffer cannot be found.
    """
    header = _read_header(info)
    log, size = _buffer(space, info)
    offset = space.read_u32(info.need_symbol("log_first_idx"))
    stop = space.read_u32(info.need_symbol("log_next_idx"))
    order = space.byteorder
    walked = seq = 0
    turned = False
    while offset != stop:
        raw = log.read(offset, header.size)
        if raw is None:
            why = log.why(offset, header.size)
            again = _find_chain(log, header, order, offset, stop, size)
            lost = ((stop if again is None else again) - offset) % size
            yield LogGap(lost, "of the log are not in the dump", why, "byte")
            if again is None:
                return
            walked += lost
            turned = turned or again < offset
            offset = again
            continue
        length = int.from_bytes(raw[header.len :][:2], order)
        text_len = int.from_bytes(raw[header.text_len :][:2], order)
        if not length and offset and not turned:  # the rest of the buffer is unused
            offset, turned = 0, True
            continue
        walked += length
        if length < header.size + text_len or walked > size or seq >= _MAX_RECORDS:
            report.sentences.append(
                f"the log record at byte {offset:#x} of its buffer is damaged, or one too many: the rest is left out"
            )
            return
        body = log.read(offset + header.size, length - header.size)
        if body is None:
            yield LogGap(1, "the text is not in the dump", log.why(offset, length))
        else:
            yield _record(header, seq, raw, body, order)
        seq += 1
        offset += length


def _find_chain(log: SparseReader, header: _Header, order: ByteOrder, lost: int, stop: int, size: int) -> int | None:
    """Where the records go on behind a header that is not in the dump: the first place there from which their lengths
    lead to `stop`. None when there is none.

    Args:
        log: the buffer.
        header: of a record.
        order: the kernel's byte order.
        lost: offset of the header.
        stop: offset at which the log ends.
        size: bytes of the buffer.
    """
    hopeless: set[int] = set()
    behind = lost + _PAGE - (log.vaddr + lost) % _PAGE
    end = stop if stop > lost else size
    places = list(range(behind, min(end, behind + _ALIGN * _MAX_TRIES), _ALIGN))
    if stop <= lost:
        places.append(0)
    for candidate in places:
        offset = candidate
        path: list[int] = []
        while offset != stop and offset not in hopeless and len(path) <= _MAX_RECORDS:
            path.append(offset)
            length = _whole_length(log.read(offset, header.size), header, order)
            if length is None:
                break
            # A length of 0 stands where the rest of the buffer is unused.
            offset = offset + length if length else 0 if stop < offset else size + 1
        if offset == stop and path:
            return candidate
        hopeless.update(path)
    return None


def _whole_length(raw: bytes | None, header: _Header, order: ByteOrder) -> int | None:
    """Bytes of a record whose parts add up to its length, as those of every record do; None for anything else."""
    if raw is None:
        return None
    length, text, dictionary = (
        int.from_bytes(raw[at : at + 2], order) for at in (header.len, header.text_len, header.dict_len)
    )
    if not length:
        return 0
    padding = length - header.size - text - dictionary
    return length if length % _ALIGN == 0 and 0 <= padding < _MAX_PADDING else None


def _record(header: _Header, seq: int, raw: bytes, body: bytes, order: ByteOrder) -> LogRecord:
    def number(offset: int, size: int) -> int:
        return int.from_bytes(raw[offset : offset + size], order)

    text_len, dict_len = number(header.text_len, 2), number(header.dict_len, 2)
    dictionary = body[text_len : text_len + dict_len]
    return LogRecord(
        seq,
        number(header.ts_nsec, 8),
        split_level(raw[header.dict_len + 3], little=order == "little"),
        raw[header.dict_len + 2],
        None if header.caller_id is None else number(header.caller_id, 4),
        body[:text_len],
        _entry(dictionary, b"SUBSYSTEM="),
        _entry(dictionary, b"DEVICE="),
    )


def _entry(dictionary: bytes, key: bytes) -> str:
    for item in dictionary.split(b"\0"):
        if item.startswith(key):
            return item[len(key) :].decode("utf-8", "backslashreplace")
    return ""


def _buffer(space: AddressSpace, info: Vmcoreinfo) -> tuple[SparseReader, int]:
    vaddr = space.read_word(info.need_symbol("log_buf"))
    size = space.read_u32(info.need_symbol("log_buf_len"))
    if not 0 < size <= _MAX_LOG:
        raise CorruptDumpError("the kernel log", f"{size} bytes are no sane size of its buffer")
    return SparseReader(space, vaddr, size), size


def read_text_log(space: AddressSpace, info: Vmcoreinfo, report: LogReport) -> bytes:
    """The text of the buffer as it is, oldest byte first; levels such as <6> stand in it.

    Raises:
        DumpfsError: the buffer cannot be found.
    """
    log, size = _buffer(space, info)
    if size > _MAX_TEXT_LOG:
        raise CorruptDumpError("the kernel log", f"{size} bytes are no sane size of its buffer")
    end = space.read_u32(info.need_symbol("log_end"))
    if end < size:
        pieces = [(0, end)]
    else:
        pieces = [(end % size, size), (0, end % size)]
    out = bytearray()
    missing, why = 0, ""
    for first, stop in pieces:
        while first < stop:
            step = min(_PAGE - (log.vaddr + first) % _PAGE, stop - first)
            data = log.read(first, step)
            if data is None:
                missing, why = missing + step, why or log.why(first, step)
            else:
                out += _gap_line(missing, why, report, out) + data
                missing, why = 0, ""
            first += step
    return bytes(out + _gap_line(missing, why, report, out))


def _gap_line(missing: int, why: str, report: LogReport, before: bytearray) -> bytes:
    """The line for `missing` bytes behind what is there `before`; b'' for none."""
    if not missing:
        return b""
    line = report.gap(LogGap(missing, "of the log are not in the dump", why, "byte")).render().encode()
    return b"\n" * bool(before and not before.endswith(b"\n")) + line + b"\n"


def parse_text_log(text: bytes) -> Iterator[LogRecord]:
    """Lines of a text log as records."""
    for seq, line in enumerate(text.split(b"\n")):
        if not line.strip(b"\0"):
            continue
        match = _LINE.fullmatch(line)
        assert match is not None  # every part may be missing
        priority = int(match[1][-4:]) if match[1] else 4
        ts_nsec = int(match[2][-12:]) * 1_000_000_000 + int(match[3]) * 1000 if match[2] else 0
        yield LogRecord(seq, ts_nsec, priority & 7, priority >> 3, None, match[4])
