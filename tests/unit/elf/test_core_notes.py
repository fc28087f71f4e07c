"""Notes of a core: kept as they are, unless a reader would be misled."""

from __future__ import annotations

import struct

import pytest

from dumpfs.elf.core_notes import build_core_notes, keep_kernel_notes
from dumpfs.notes import parse_notes
from tests.build.notes import note

SIZES = {8: (32, 336), 4: (24, 144)}


def prstatus(pid: int, word: int = 8, order: str = "little") -> bytes:
    offset, size = SIZES[word]
    desc = bytearray(range(1, 100)) + bytearray(size - 99)
    struct.pack_into("<i" if order == "little" else ">i", desc, offset, pid)
    return note(b"CORE", 1, bytes(desc), order)


def pids(data: bytes, word: int = 8, order: str = "little") -> list[int]:
    offset = SIZES[word][0]
    return [
        struct.unpack_from("<i" if order == "little" else ">i", n.desc, offset)[0]
        for n in parse_notes(data, order)
        if n.name == b"CORE"
    ]


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("word", [4, 8])
@pytest.mark.parametrize("own", [[1, 2], [1, 0], [7], [0], []])
def test_unique_pids_are_left_alone(own, word, order):
    image = b"".join(prstatus(pid, word, order) for pid in own) + note(b"QEMU", 0, b"abc", order)
    assert build_core_notes(image, order, order, word, None, b"") == (image, ())


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("word", [4, 8])
@pytest.mark.parametrize("own", [[0, 0], [0, 5, 0, 0], [9, 9, 9], [3, 0, 3, 4]])
def test_processors_get_pids_of_their_own(own, word, order):
    image = b"".join(prstatus(pid, word, order) for pid in own)
    data, notices = build_core_notes(image, order, order, word, None, b"")
    made = pids(data, word, order)
    assert len(set(made)) == len(own)
    assert 0 not in made
    assert [new for new, old in zip(made, own, strict=True) if new != old] == [p for p in made if p > 4_194_303]
    assert made[own.index(max(own))] == max(own) or not max(own)
    assert len(data) == len(image)
    assert "made-up pr_pid" in notices[0]


def test_missing_vmcoreinfo_and_eraseinfo_are_added():
    data, _ = build_core_notes(prstatus(1), "little", "little", 8, b"A=1\n", b"erased")
    assert data.startswith(prstatus(1))
    assert [(n.name, n.desc) for n in parse_notes(data, "little")][1:] == [
        (b"VMCOREINFO", b"A=1\n"),
        (b"ERASEINFO", b"erased"),
    ]


def test_vmcoreinfo_of_the_dump_is_not_added_again():
    image = note(b"VMCOREINFO", 0, b"A=1\n", "little")
    assert build_core_notes(image, "little", "little", 8, b"B=2\n", b"").data == image


def test_notes_follow_the_kernels_byte_order():
    head = struct.pack(">3ih2x2Q4i8Q", 1, 2, 3, 4, 5, 6, 77, 8, 9, 10, *range(8))
    desc = head + struct.pack(">4Q", 11, 12, 13, 1 << 60) + struct.pack(">ii", 1, 0)
    image = (
        note(b"CORE", 1, desc, "big")
        + note(b"VMCOREINFO", 0, b"A=1\n", "big")
        + note(b"LINUX", 0x100, b"x" * 16, "big")
    )
    data, notices = build_core_notes(image, "big", "little", 8, b"A=1\n", b"")
    notes = list(parse_notes(data, "little"))
    assert [n.name for n in notes] == [b"CORE", b"VMCOREINFO"]
    assert struct.unpack("<3ih2x2Q4i8Q4Qi4x", notes[0].desc) == struct.unpack(">3ih2x2Q4i8Q4Qi4x", desc)
    assert notes[1].desc == b"A=1\n"
    assert "1 notes were left out" in notices[0]


@pytest.mark.parametrize("image", [b"\xff" * 50, b"\1\0\0\0" * 5, prstatus(0)[:100] * 3])
def test_notes_that_cannot_be_read_are_left_out(image):
    # Behind them come other notes, which would make them readable.
    whole = prstatus(7)
    data, notices = build_core_notes(whole + image, "little", "little", 8, b"A=1\n", b"")
    assert [(n.name, n.desc) for n in parse_notes(data, "little")][1:] == [(b"VMCOREINFO", b"A=1\n")]
    assert data.startswith(whole)
    assert notices[0].startswith("notes that no kernel's dump needs were left out: ")


KEPT = [
    (b"CORE", 1),
    (b"CORE", 2),
    (b"LINUX", 0x202),
    (b"LINUX", 0x309),
    (b"LINUX", 0x405),
    (b"LINUX", 0x700),
    (b"QEMU", 0),
    (b"Xen", 0x1000001),
    (b"Xen", 0x1000002),
    (b"VMCOREINFO", 0),
    (b"VMCOREINFO_XEN", 0),
    (b"ERASEINFO", 0),
]
NT_FILE = 0x46494C45


@pytest.mark.parametrize("order", ["little", "big"])
def test_notes_that_debuggers_of_kernels_need_are_kept_as_they_are(order):
    image = b"".join(note(name, kind, b"x" * (i + 1), order) for i, (name, kind) in enumerate(KEPT)) + bytes(40)
    assert keep_kernel_notes(image, order) == (image, ())


@pytest.mark.parametrize("order", ["little", "big"])
def test_others_are_left_out_and_named(order):
    # BFD does not look at the name: an NT_FILE is one whatever its owner.
    others = [(b"CORE", 3), (b"CORE", 6), (b"CORE", NT_FILE), (b"CORE", 0x53494749), (b"QEMU", NT_FILE)]
    pieces = [note(name, kind, b"desc", order) for name, kind in KEPT]
    mixed = b"".join(a + note(*b, b"/dev/tape\0", order) for a, b in zip(pieces, others, strict=False))
    data, (notice,) = keep_kernel_notes(mixed + b"".join(pieces[len(others) :]) + bytes(12), order)
    assert data == b"".join(pieces) + bytes(12)
    assert notice.endswith(": CORE NT_PRPSINFO, CORE NT_AUXV, CORE NT_FILE, CORE NT_SIGINFO, QEMU NT_FILE")


def test_the_notice_is_short_and_fit_for_a_terminal():
    image = b"".join(note(b"\x1b[31m\n%d" % i + b"z" * 5000, i, b"", "little") for i in range(1000))
    data, (notice,) = keep_kernel_notes(image, "little")
    assert data == b""
    assert notice.isprintable()
    assert len(notice) < 300
    assert notice.endswith(", and others")
