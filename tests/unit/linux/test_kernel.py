"""What is found out of a kernel, from which source, and that nothing in a dump makes finding out fail."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dumpfs.errors import FormatError, SourceError, VmcoreinfoError
from dumpfs.formats import open_image
from dumpfs.formats.base import DumpMeta
from dumpfs.linux.kernel import find_kernel
from dumpfs.linux.machine import find_machine, find_page_size, normalize_machine
from dumpfs.linux.printk import render_dmesg
from dumpfs.linux.vmcoreinfo_scan import find_pointers, follow_pointers, scan_memory
from dumpfs.linux.vmlinux import has_log, read_vmlinux, relocate
from dumpfs.notes import Note, build_note
from dumpfs.vmcoreinfo import Vmcoreinfo
from tests.unit.arch.test_layout import DIRECT, IMAGE, MB, TEXT, X86, arm64, render
from tests.unit.linux.guest import PAGE, Guest
from tests.work import bounded_work

META = DumpMeta(format="kdump", block_size=PAGE, max_pfn=0, byteorder="little", word_size=8)


@pytest.mark.parametrize(
    ("name", "machine"),
    [("x86_64", "x86_64"), ("S390X", "s390x"), ("armv7l", "arm"), ("i586", "i686"), ("Unknown", ""), ("", "")],
)
def test_machine_names_are_unified(name: str, machine: str):
    assert normalize_machine(name) == machine


@pytest.mark.parametrize(
    ("text", "machine"),
    [
        (b"NUMBER(kimage_voffset)=0x1\n", "aarch64"),
        (b"SYMBOL(init_top_pgt)=1\n", "x86_64"),
        (b"OSRELEASE=6.1.0-50-powerpc64le\n", "ppc64le"),
        (b"OSRELEASE=6.1.0\n", ""),
    ],
)
def test_machine_by_vmcoreinfo_when_the_header_has_none(text: bytes, machine: str):
    assert find_machine(META, (), Vmcoreinfo(text))[0] == machine


@pytest.mark.parametrize(
    ("size", "order", "machine"),
    [(336, "little", "x86_64"), (336, "big", "s390x"), (392, "little", "aarch64"), (1, "little", "")],
)
def test_machine_by_the_size_of_register_notes(size: int, order: str, machine: str):
    meta = DumpMeta(format="kdump", block_size=PAGE, max_pfn=0, byteorder=order, word_size=8)
    assert find_machine(meta, (Note(b"CORE", 1, bytes(size), 0, 0),), None)[0] == machine


def test_page_size_of_qemus_header_is_not_the_kernels():
    from dumpfs.arch.base import arch_for

    arch = arch_for("aarch64")
    for variant, size in (("QEMU", 0x1000), ("", 0x10000)):
        meta = DumpMeta("kdump", 0x10000, 0, "little", 8, machine="aarch64", variant=variant)
        assert find_page_size(meta, arch, None)[0] == size


def test_crash_time_cpus_release_and_build_id():
    x86 = X86(timestamp=5.0, nr_cpus=7)
    more = {"CRASHTIME": 1700000000, "BUILD-ID": "ab" * 20}
    kernel = x86.kernel(x86.info(**more))
    assert (kernel.crash_time, kernel.cpus, kernel.release, kernel.build_id) == (1.7e9, 7, "6.1.0-test", "ab" * 20)
    x86.guest.note_bytes = build_note(b"CORE", 1, bytes(336), "little") * 3
    kernel = x86.kernel(x86.info())
    assert (kernel.crash_time, kernel.cpus) == (5.0, 3)


def test_a_utsname_that_is_none_is_a_problem():
    x86 = X86()
    kernel = x86.kernel(x86.info(**{"SYMBOL(init_uts_ns)": f"{x86.text:x}"}))
    assert kernel.uts.release == ""
    assert any("init_uts_ns" in problem for problem in kernel.problems)


@pytest.mark.parametrize("told", [True, False], ids=["since 5.10", "before"])
def test_utsname_behind_a_reference_count(told: bool):
    x86 = X86()
    more = {"SYMBOL(init_uts_ns)": f"{x86.text + 0x8000 - 4:x}", "OFFSET(uts_namespace.name)": 4 if told else None}
    assert x86.kernel(x86.info(**more)).uts.nodename == "node"


def test_an_unknown_machine_has_no_address_space():
    kernel = find_kernel(Guest(4, machine="vax"))
    assert (kernel.arch, kernel.space) == (None, None)
    assert any("'vax'" in problem for problem in kernel.problems)


def test_finding_a_kernel_reads_few_pages():
    x86 = X86()
    x86.kernel(x86.info())
    assert x86.guest.reads < 100


def test_a_vmcoreinfo_file_that_is_none_is_refused():
    with pytest.raises(VmcoreinfoError):
        find_kernel(Guest(4), vmcoreinfo=b"hello\n")


def test_the_users_vmcoreinfo_is_taken_before_the_dumps():
    x86 = X86()
    x86.guest.text = b"OSRELEASE=other\n"
    kernel = find_kernel(x86.guest, vmcoreinfo=x86.info())
    assert (kernel.release, kernel.origins["vmcoreinfo"]) == ("6.1.0-test", "option vmcoreinfo")


def test_a_vmlinux_does_not_move_the_dumps_own_symbols(corpus: Callable[[str], Path]):
    x86 = X86()
    x86.guest.text = x86.info(KERNELOFFSET=None)
    kernel = find_kernel(x86.guest, vmlinux=str(corpus("tiny/vmlinux")), kaslr=0x1000)
    assert kernel.problems == ()
    assert kernel.uts.nodename == "node"
    assert kernel.vmcoreinfo is not None
    assert has_log(kernel.vmcoreinfo)


# -- searching memory


def test_deep_is_the_kernel_itself_when_vmcoreinfo_is_known():
    x86 = X86()
    kernel = x86.kernel(x86.info())
    assert kernel.deep is kernel


def test_a_search_follows_the_kernel_images_pointers():
    x86 = X86()
    x86.cr3_note(x86.root)
    x86.guest.put(0x3A0000, x86.info())
    x86.guest.put(IMAGE + 0x9008, DIRECT + 0x3A0000)
    kernel = x86.kernel()
    pointers = find_pointers(kernel.phys, IMAGE, MB, DIRECT, "little")
    found = [c.paddr for c in follow_pointers(kernel.phys, pointers)]
    assert found == [0x3A0000]
    deep = kernel.deep
    assert deep is kernel.deep
    assert deep.vmcoreinfo is not None
    assert deep.problems == ()
    assert deep.origins["vmcoreinfo"] == "a search of memory, found at physical 0x3a0000"


@pytest.mark.parametrize("note", [False, True], ids=["page", "note"])
def test_a_search_without_pointers_looks_at_all_memory(note: bool):
    x86 = X86()
    x86.guest.put(0x3A0000, build_note(b"VMCOREINFO", 0, x86.info(), "little") if note else x86.info())
    assert x86.kernel().deep.phys_base == x86.phys_base


def test_a_search_takes_the_text_that_fits_the_memory_it_is_in():
    x86 = X86()
    x86.cr3_note(x86.root)
    wrong = x86.info(**{"OSRELEASE": "5.0", "NUMBER(phys_base)": 0, "CRASHTIME": 1})
    x86.guest.put(0x380000, wrong)
    x86.guest.put(0x3A0000, x86.info())
    x86.guest.put(0x3C0000, wrong + b"X=1\n")
    deep = x86.kernel().deep
    assert deep.release == "6.1.0-test"
    assert deep.problems == ()


class TwoKernels:
    """A crashed kernel, and the capture kernel that runs since, in one memory."""

    NOTE, HEADER = 0x60000, 0x70000

    def __init__(self) -> None:
        self.crashed = X86()
        self.capture = X86(physical=0x200000, text=TEXT + 0x6000000)
        self.guest = self.crashed.guest
        self.guest.put(0x200000, bytes(self.capture.guest.memory[0x200000:0x300000]))
        self.capture.guest = self.guest
        self.capture.cr3_note(self.capture.root)
        self.guest.put(self.NOTE, build_note(b"VMCOREINFO", 0, self.crashed.info(CRASHTIME=1700000000), "little"))
        self.guest.put(0x50000, self.capture.info(OSRELEASE="6.1.0-test"))
        self.guest.put(0x200000 + 0x9008, DIRECT + 0x50000)

    def hand_over(self, notes: int) -> None:
        """The ELF header that the crashed kernel left, with its address in the capture kernel's image."""
        ident = b"\x7fELF\2\1\1".ljust(16, b"\0")
        header = ident + struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
        load = struct.pack("<IIQQQQQQ", 1, 7, 0, TEXT, IMAGE, MB, MB, 0)
        note = struct.pack("<IIQQQQQQ", 4, 0, notes, 0, 0, 0x1000, 0x1000, 0)
        self.guest.put(self.HEADER, header + load + note)
        self.guest.put(0x200000 + 0x9100, self.HEADER)


def test_a_search_prefers_the_crashed_kernel_to_the_capture_kernel():
    two = TwoKernels()
    two.hand_over(two.NOTE)
    kernel = two.capture.kernel()
    assert kernel.phys_base == two.capture.phys_base
    deep = kernel.deep
    assert deep.phys_base == two.crashed.phys_base
    assert deep.kaslr_offset == TEXT - 0xFFFFFFFF81000000
    assert deep.crash_time == 1700000000
    assert deep.problems == ()
    assert deep.origins["vmcoreinfo"].startswith("what was handed to the capture kernel, found at physical 0x600")


def test_a_running_kernel_that_was_handed_nothing_is_the_one():
    two = TwoKernels()
    assert two.capture.kernel().deep.phys_base == two.capture.phys_base


@pytest.mark.parametrize("notes", [0x3FFFFF, 1 << 50, 0x50000])
def test_a_header_that_leads_nowhere_is_passed_over(notes: int):
    two = TwoKernels()
    two.hand_over(notes)
    assert two.capture.kernel().deep.phys_base == two.capture.phys_base


def test_a_search_that_finds_nothing_says_so():
    x86 = X86()
    x86.guest.put(0x3A0010, x86.info())  # not where the kernel keeps it
    x86.guest.put(0x3B0000, b"OSRELEASE=6.1\n")  # not all of it
    deep = x86.kernel().deep
    assert deep.vmcoreinfo is None
    assert deep.problems[-1] == "no VMCOREINFO in the dump, nor anywhere in its memory"


def test_a_search_ends_at_its_limit():
    x86 = X86()
    x86.guest.put(0x3A0000, x86.info())
    assert len(list(scan_memory(x86.guest))) == 1
    assert list(scan_memory(x86.guest, limit=0)) == []


def test_text_ends_where_it_is_no_text_any_more():
    guest = Guest(64)
    info = X86().info()
    guest.put(0x3000, info + b"SYMBOL(cut\xff\x00")
    assert [c.text for c in scan_memory(guest)] == [info]


# -- a vmlinux instead


def test_relocation_moves_symbols_only():
    text = relocate(b"OSRELEASE=6.1\nSYMBOL(a)=ffffffff81000000\nOFFSET(b.c)=16\n", 0x1000000)
    assert text == b"OSRELEASE=6.1\nSYMBOL(a)=ffffffff82000000\nOFFSET(b.c)=16\nKERNELOFFSET=1000000\n"


def test_log_keys_are_recognised():
    assert has_log(Vmcoreinfo(b"SYMBOL(prb)=1\n"))
    assert has_log(Vmcoreinfo(b"SYMBOL(log_buf)=1\n"))
    assert not has_log(Vmcoreinfo(b"OSRELEASE=6.1\n"))


def test_a_vmlinux_that_is_none_is_refused(tmp_path: Path):
    path = tmp_path / "vmlinux"
    path.write_bytes(b"\x7fELF" + bytes(100))
    with pytest.raises(FormatError):
        find_kernel(Guest(4), vmlinux=str(path))
    with pytest.raises(SourceError):
        find_kernel(Guest(4), vmlinux=str(tmp_path / "missing"))


def test_a_vmlinux_stands_in_for_vmcoreinfo(corpus: Callable[[str], Path]):
    image = open_image([str(corpus("tiny/qemu-kaslr-novmci.kdump-zlib"))])
    kernel = find_kernel(image, vmlinux=str(corpus("tiny/vmlinux")))
    searched = find_kernel(image, deep=True)
    assert kernel.problems == ()
    assert kernel.origins["vmcoreinfo"] == "option vmlinux"
    assert (kernel.kaslr_offset, kernel.phys_base) == (searched.kaslr_offset, searched.phys_base)
    assert render_dmesg(kernel).text == render_dmesg(searched).text


def test_a_vmlinux_tells_what_vmcoreinfo_tells(corpus: Callable[[str], Path]):
    linked = Vmcoreinfo(read_vmlinux(str(corpus("tiny/vmlinux"))))
    text = open_image([str(corpus("tiny/mkd-zstd-d31.kdump"))]).vmcoreinfo_text()
    assert text is not None
    ran = Vmcoreinfo(text)  # of a boot without KASLR
    shared = [key for key in linked if key in ran]
    assert len(shared) > 40
    assert {key: linked.get(key) for key in shared} == {key: ran.get(key) for key in shared}


@pytest.mark.slow
def test_dwarf_tells_what_btf_tells(corpus: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch):
    from dumpfs.linux import vmlinux

    path = str(corpus("tiny/vmlinux"))
    by_btf = read_vmlinux(path)
    real = vmlinux._section
    monkeypatch.setattr(vmlinux, "_section", lambda p, s, e, name: None if name == ".BTF" else real(p, s, e, name))
    assert read_vmlinux(path) == by_btf


# -- hostile dumps

KEYS = [*Vmcoreinfo(X86().info()), "SIZE(prb_desc)", "NUMBER(sme_mask)", "NUMBER(KERNEL_IMAGE_SIZE)"]
VALUES = st.one_of(
    st.integers(-(2**70), 2**70).map(str),
    st.integers(0, 2**64).map(hex),
    st.sampled_from(["", "zz", "0", "-1", "9" * 500, "ffffffffffffffff"]),
)


@given(values=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4), deep=st.booleans())
def test_any_vmcoreinfo_gives_a_kernel_of_x86_64(values: dict[str, str], deep: bool):
    x86 = X86()
    x86.cr3_note(x86.root)
    x86.guest.text = x86.info(**values)
    with bounded_work(50_000):  # measured: at most 970
        kernel = find_kernel(x86.guest, deep=deep)
        assert isinstance(kernel.uts.release, str)
    assert kernel.crash_time is None or kernel.crash_time > 0


ARM_GUEST, ARM_VALUES = arm64()


@given(values=st.dictionaries(st.sampled_from(sorted(ARM_VALUES)), VALUES, max_size=4))
def test_any_vmcoreinfo_gives_a_kernel_of_aarch64(values: dict[str, str]):
    ARM_GUEST.text = render(ARM_VALUES | values)
    with bounded_work(50_000):  # measured: at most 580
        kernel = find_kernel(ARM_GUEST)
        assert isinstance(kernel.uts.release, str)


@given(
    text=st.binary(max_size=300), notes=st.binary(max_size=300), machine=st.sampled_from(["x86_64", "s390x", "arm", ""])
)
def test_any_bytes_give_a_kernel(text: bytes, notes: bytes, machine: str):
    guest = Guest(4, "big" if machine == "s390x" else "little", machine=machine)
    guest.text, guest.note_bytes = text, notes
    assert find_kernel(guest, deep=True).machine in (
        "x86_64",
        "s390x",
        "arm",
        "aarch64",
        "i686",
        "ppc64",
        "riscv64",
        "",
    )


@pytest.mark.parametrize("depth", [4, 5])
def test_page_tables_are_searched_for_when_nothing_tells(depth: int):
    x86 = X86(depth, DIRECT if depth == 4 else 0xFF1D4F2200000000)
    x86.guest.put(IMAGE + 0x9000, b"Linux version 6.1.0-test")
    kernel = x86.kernel()
    assert kernel.origins["phys_base"] == "the default, unconfirmed"
    deep = kernel.deep
    assert (deep.phys_base, deep.page_offset) == (x86.phys_base, DIRECT if depth == 4 else 0xFF1D4F2200000000)
    assert deep.kaslr_offset == TEXT - 0xFFFFFFFF81000000
    assert deep.origins["phys_base"] == "page tables found by a search"
    assert deep.text == (TEXT, IMAGE, MB)


def test_page_tables_of_something_else_are_not_taken():
    x86 = X86()
    assert x86.kernel().deep.origins["phys_base"] == "the default, unconfirmed"


@pytest.mark.parametrize(
    ("facts", "searched"),
    [({}, True), ({"machine": ""}, False), ({"machine": "", "format": "lime"}, True), ({"machine": "m68k"}, False)],
    ids=str,
)
def test_memory_is_searched_where_that_can_tell_more(facts: dict[str, str], searched: bool):
    assert find_kernel(Guest(**facts)).may_be_searched is searched


def test_a_flat_image_is_understood_by_what_its_memory_says():
    x86 = X86(machine="", format="raw")
    x86.guest.put(0x3A0000, x86.info())
    kernel = x86.kernel()
    assert kernel.arch is None
    deep = kernel.deep
    assert (deep.machine, deep.phys_base) == ("x86_64", x86.phys_base)
    assert deep.origins["phys_base"] == "VMCOREINFO NUMBER(phys_base)"
    assert deep.problems == ()
