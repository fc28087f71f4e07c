"""Which text a dump's kernel is told by: torn, foreign and empty blocks are doubted, and better ones found."""

from __future__ import annotations

import struct

import pytest

from dumpfs.linux.kernel import Kernel, find_kernel
from dumpfs.linux.vmcoreinfo_judge import NO_LOG, judge_text
from dumpfs.notes import build_note
from dumpfs.vfs.context import Dump
from tests.unit.arch.test_layout import IMAGE, UTS, X86, put_uts
from tests.unit.linux.guest import PAGE

BLOCK = 200 * PAGE
"""Where the guest keeps its VMCOREINFO."""
LOG = "ffffffff92480000"


class Told(X86):
    """A guest whose memory has the whole text, whatever its header says."""

    def __init__(self, in_memory: bool = True) -> None:
        super().__init__()
        self.whole = self.info(**{"SYMBOL(prb)": LOG, "CRASHTIME": 1700000000})
        if in_memory:
            self.guest.put(BLOCK, self.whole)

    def told(self, text: bytes | None) -> Kernel:
        self.guest.text = text
        return find_kernel(self.guest)


@pytest.mark.parametrize(
    ("text", "doubt"),
    [
        (b"OSRELEASE=6.1\nPAGESIZE=4096\nSYMBOL(prb)=ffff\n", ""),
        (b"OSRELEASE=6.1\nPAGESIZE=4096\nSYMBOL(log_buf)=ffff\n\0\0", ""),
        (b"OSRELEASE=6.1\nPAGESIZE=4096\nSYMBOL(prb)=ffff\nKERNELOFFSET=7a0", "ends in the middle of a line"),
        (b"OSRELEASE=6.1\nPAGESIZE=4096\nSYMBOL(prb)=ffff\nKERNELOFFSET=7a0\0\0", "ends in the middle of a line"),
        (b"OSRELEASE=6.1\nPAGESIZE=4096\nSYMBOL(_stext)=ffff\n", NO_LOG),
        (b"OSRELEASE=6.1\nPAGESIZE=4096\n", "has no symbols"),
        (b"OSRELEASE=6.1\n", "has neither page size nor symbols"),
        (b"PAGESIZE=4096\nSYMBOL(prb)=ffff\n", "names no release"),
        (b"\x7fELF", "ends in the middle of a line"),
        (b"", "names no release"),
    ],
)
def test_a_text_is_judged_by_itself(text, doubt):
    told = judge_text(text, "somewhere")
    assert told.doubt == doubt
    assert told.text == b"" or told.text.endswith(b"\n")
    assert b"7a0" not in told.text


def test_a_torn_text_gives_way_to_that_in_memory():
    guest = Told()
    cut = guest.whole.index(b"KERNELOFFSET=") + len(b"KERNELOFFSET=11")
    kernel = guest.told(guest.whole[:cut])
    assert kernel.kaslr_offset is None
    assert kernel.doubt == "ends in the middle of a line"
    assert kernel.deep.kaslr_offset == guest.text - 0xFFFFFFFF81000000
    assert kernel.deep.crash_time == 1700000000
    assert not kernel.deep.doubt
    expected = f"ends in the middle of a line: the one in memory at {BLOCK:#x} is used instead"
    assert next(problem for problem in kernel.deep.problems if "VMCOREINFO" in problem).endswith(expected)


def test_a_torn_text_is_used_line_by_line_where_there_is_no_other():
    guest = Told(in_memory=False)
    kernel = guest.told(guest.whole[: guest.whole.index(b"CRASHTIME=") + 13])
    assert kernel.deep.uts.release == "6.1.0-test"
    assert kernel.deep.crash_time is None
    assert kernel.deep.doubt == "ends in the middle of a line"


def test_a_note_that_is_whole_comes_before_a_header_that_is_not():
    guest = Told(in_memory=False)
    guest.guest.note_bytes = build_note(b"VMCOREINFO", 0, guest.whole, "little")
    kernel = guest.told(guest.whole[:100])
    assert not kernel.doubt
    assert kernel.crash_time == 1700000000
    assert kernel.origins["vmcoreinfo"] == "a note of the dump"
    assert any("a note of the dump has it whole" in problem for problem in kernel.problems)


def test_a_text_of_another_kernel_is_seen_by_the_kernels_own_name():
    guest = Told()
    put_uts(guest.guest, IMAGE + UTS, "6.1.0-test")
    kernel = guest.told(guest.whole.replace(b"6.1.0-test", b"5.10.0-old"))
    assert kernel.doubt == "is of 5.10.0-old, and the kernel in memory is 6.1.0-test"
    assert kernel.deep.release == "6.1.0-test"
    assert not kernel.deep.doubt


@pytest.mark.parametrize("keeps_phys_base", [True, False])
def test_a_text_of_another_boot_leads_nowhere(keeps_phys_base):
    guest = Told()
    moved = guest.info(
        **{
            "SYMBOL(prb)": LOG,
            "SYMBOL(init_uts_ns)": f"{guest.text + UTS + (8 << 20):x}",
            "SYMBOL(init_top_pgt)": f"{guest.root_vaddr + (8 << 20):x}",
            "SYMBOL(_stext)": f"{guest.text + (8 << 20):x}",
            "NUMBER(phys_base)": guest.phys_base - (8 << 20) * keeps_phys_base + 4096,
        }
    )
    kernel = guest.told(moved)
    assert kernel.doubt == "tells of a kernel that is not where it says"
    assert kernel.page_offset is None
    assert kernel.deep.uts.release == "6.1.0-test"
    assert kernel.deep.page_offset is not None


def test_a_text_without_a_log_is_believed_where_its_kernel_is_in_memory():
    guest = Told(in_memory=False)
    assert not guest.told(guest.info()).doubt


def test_a_text_that_memory_repeats_is_no_longer_doubted():
    guest = Told(in_memory=False)
    text = guest.info(**{"SYMBOL(init_uts_ns)": None, "OFFSET(uts_namespace.name)": None, "NUMBER(more)": 1})
    guest.guest.put(BLOCK, text)
    kernel = guest.told(text)
    assert kernel.doubt == NO_LOG
    assert not kernel.deep.doubt
    assert kernel.deep.origins["vmcoreinfo"] == "the dump's header or notes"


@pytest.mark.parametrize("text", [b"\0" * 100, b"\xff" * 100, b"OSRELEASE=", b"no line at all"])
def test_what_is_no_text_is_as_good_as_none(text):
    guest = Told()
    assert guest.told(text).deep.crash_time == 1700000000


def _zeroed(data: bytearray, at: int, size: int) -> None:
    data[at + 100 : at + size] = bytes(size - 100)


def _of_another_kernel(data: bytearray, at: int, size: int) -> None:
    data[at : at + size] = data[at : at + size].replace(b"OSRELEASE=6.1.", b"OSRELEASE=7.1.")


def _moved(data: bytearray, at: int, size: int) -> None:
    data[at : at + size] = data[at : at + size].replace(b"=ffffffff81", b"=ffffffff95").replace(b"81c8", b"95c8")


def _short(data: bytearray, at: int, size: int) -> None:
    struct.pack_into("<Q", data, 4096 + 40, 100)


@pytest.mark.parametrize("damage", [_zeroed, _of_another_kernel, _moved, _short])
def test_a_real_dump_is_understood_whatever_became_of_its_text(tmp_path, data, damage):
    raw = bytearray(data("mkd-raw-d31.kdump").read_bytes())
    damage(raw, *struct.unpack_from("<2Q", raw, 4096 + 32))
    path = tmp_path / "dump"
    path.write_bytes(raw)
    with Dump.open([str(path)]) as dump, Dump.open([str(data("mkd-raw-d31.kdump"))]) as good:
        assert dump.tree.at("dmesg").read(0, 1 << 20) == good.tree.at("dmesg").read(0, 1 << 20)
        assert list(dump.tree.paths) == list(good.tree.paths)
        for name in ("tasks", "modules", "vmcoreinfo"):
            assert type(dump.tree.at(name)) is type(good.tree.at(name))
        assert dump.deep_kernel.page_offset == good.kernel.page_offset
        assert dump.tree.at("vmcoreinfo").read(0, 40) == good.tree.at("vmcoreinfo").read(0, 40)
        notices = dump.tree.at("status").read(0, 1 << 20).decode()
        assert notices.count("VMCOREINFO of ") == 1
        dump.inspection.adopt(dump.inspection.build())  # as a mount does, whose helper has found it out
        status = type(dump.tree.at("status"))(1, dump).read(0, 1 << 20).decode()
        notices = status[status.index("notices:") :]
        assert notices.count("VMCOREINFO of ") == 1
        assert "is used instead" in notices or "has it whole" in notices
        assert "the direct map was not found" not in notices
