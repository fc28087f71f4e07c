"""Where each architecture finds its kernel, on guests built by hand."""

from __future__ import annotations

import struct

import pytest

from dumpfs.arch.base import LayoutFacts, arch_for
from dumpfs.formats.base import Utsname
from dumpfs.linux.kernel import Kernel, find_kernel
from dumpfs.notes import build_note
from tests.unit.linux.guest import PAGE, Guest

TOP = 1 << 64
MAP = 0xFFFFFFFF80000000
MB = 1 << 20
IMAGE = 1 * MB
"""Physical start of the x86_64 guest's kernel image."""
TEXT = 0xFFFFFFFF92400000
DIRECT = 0xFFFF99D340000000
UTS = 0x8000
"""Offset of init_uts_ns in the image."""


def put_uts(guest: Guest, paddr: int, release: str = "6.1.0-test") -> None:
    fields = ("Linux", "node", release, "#1", "x86_64", "(none)")
    guest.put(paddr, b"".join(field.encode().ljust(65, b"\0") for field in fields))


class X86:
    """A KASLR kernel of one 2 MiB page at `IMAGE`, its tables behind it, and a direct map of 4 MiB."""

    def __init__(self, depth: int = 4, direct: int = DIRECT, physical: int = IMAGE, text: int = TEXT, **meta: object):
        self.guest = Guest(1024, **meta)
        self.guest._next_table = (physical + 0x100000) // PAGE  # the root lies in the image, as in a real kernel
        self.depth, self.text = depth, text
        self.root = self.guest.table()
        for offset in range(0, MB, PAGE):
            self.guest.map_x86(self.root, text + offset, physical + offset, 1, depth)
        for offset in range(0, 4 * MB, 2 * MB):
            self.guest.map_x86(self.root, direct + offset, offset, 2, depth)
        self.phys_base = physical - (text - MAP)
        self.root_vaddr = text + self.root - physical
        put_uts(self.guest, physical + UTS)

    def info(self, **more: object) -> bytes:
        values = {
            "OSRELEASE": "6.1.0-test",
            "PAGESIZE": 4096,
            "SYMBOL(init_uts_ns)": f"{self.text + UTS:x}",
            "OFFSET(uts_namespace.name)": 0,
            "SYMBOL(_stext)": f"{self.text:x}",
            "SYMBOL(init_top_pgt)": f"{self.root_vaddr:x}",
            "NUMBER(phys_base)": self.phys_base,
            "NUMBER(pgtable_l5_enabled)": int(self.depth == 5),
            "KERNELOFFSET": f"{self.text - 0xFFFFFFFF81000000:x}",
        }
        return "".join(f"{k}={v}\n" for k, v in (values | more).items() if v is not None).encode()

    def kernel(self, text: bytes | None = None, **options: object) -> Kernel:
        self.guest.text = text
        return find_kernel(self.guest, **options)

    def cr3_note(self, cr3: int) -> None:
        state = bytearray(440)
        struct.pack_into("<QQ", state, 416, cr3, 1 << 12 if self.depth == 5 else 0)
        self.guest.note_bytes = build_note(b"QEMU", 0, bytes(state), "little")


@pytest.mark.parametrize("depth", [4, 5])
def test_x86_64_by_vmcoreinfo(depth: int):
    x86 = X86(depth, DIRECT if depth == 4 else 0xFF1D4F2200000000)
    kernel = x86.kernel(x86.info())
    assert kernel.problems == ()
    assert kernel.phys_base == x86.phys_base < 0
    assert kernel.page_offset == (DIRECT if depth == 4 else 0xFF1D4F2200000000)
    assert kernel.kaslr_offset == TEXT - 0xFFFFFFFF81000000
    assert kernel.text == (TEXT, IMAGE, MB)
    assert kernel.uts.nodename == "node"
    assert kernel.origins["phys_base"] == "VMCOREINFO NUMBER(phys_base)"
    assert kernel.origins["page_offset"] == "page tables"


def test_x86_64_levels_are_tried_when_vmcoreinfo_does_not_tell_them():
    x86 = X86()
    assert x86.kernel(x86.info(**{"NUMBER(pgtable_l5_enabled)": None})).problems == ()


def test_x86_64_header_phys_base_of_qemu_is_not_trusted():
    x86 = X86(phys_base=0x75497472)
    kernel = x86.kernel(x86.info())
    assert kernel.phys_base == x86.phys_base
    assert kernel.problems == ()


def test_x86_64_phys_base_of_a_pt_load_serves_kernels_that_do_not_print_it():
    x86 = X86(virtual_loads=((TEXT, IMAGE, MB), (DIRECT, 0, 4 * MB)))
    kernel = x86.kernel(x86.info(**{"NUMBER(phys_base)": None}))
    assert kernel.phys_base == x86.phys_base
    assert kernel.origins["phys_base"] == "the kernel text PT_LOAD"
    assert kernel.origins["page_offset"] == "PT_LOADs"
    assert kernel.text == (TEXT, IMAGE, MB)


def test_x86_64_a_text_pt_load_cut_in_pieces_is_one_mapping():
    x86 = X86(virtual_loads=((TEXT, IMAGE, MB // 2), (TEXT + MB // 2, IMAGE + MB // 2, MB // 2), (DIRECT, 0, 4 * MB)))
    assert x86.kernel(x86.info()).text == (TEXT, IMAGE, MB)


def test_x86_64_a_wrong_phys_base_option_is_refuted_by_the_tables():
    x86 = X86()
    kernel = x86.kernel(x86.info(), phys_base=0x1000000)
    assert kernel.phys_base == x86.phys_base
    assert any("phys_base=0x1000000" in problem for problem in kernel.problems)


def test_x86_64_a_wrong_direct_map_in_pt_loads_is_refuted_by_the_tables():
    x86 = X86(virtual_loads=((0xFFFF888000000000, 0, 4 * MB),))
    kernel = x86.kernel(x86.info())
    assert kernel.page_offset == DIRECT
    assert kernel.space is not None
    assert kernel.space.read(DIRECT + IMAGE + UTS, 5) == b"Linux"


def test_x86_64_without_tables_a_guessed_direct_map_reads_nothing():
    x86 = X86()
    x86.guest.lost_pages.add(x86.root // PAGE)
    kernel = x86.kernel(x86.info())
    assert kernel.page_offset is None  # KASLR moved it who knows where
    assert kernel.space is not None
    assert [rule.name for rule in kernel.space.linear] == ["text"]
    assert kernel.uts.release == "6.1.0-test"


@pytest.mark.parametrize(
    ("release", "depth", "base"),
    [
        ("2.6.11", 4, 0xFFFF810000000000),
        ("2.6.26.8", 4, 0xFFFF810000000000),
        ("2.6.27", 4, 0xFFFF880000000000),
        ("3.10.0-1160.el7.x86_64", 4, 0xFFFF880000000000),
        ("4.19.0-27-amd64", 4, 0xFFFF880000000000),
        ("4.20.0", 4, 0xFFFF888000000000),
        ("6.1.0-test", 4, 0xFFFF888000000000),
        ("4.19.0", 5, 0xFF10000000000000),
        ("6.12.1", 5, 0xFF11000000000000),
        ("custom", 4, None),
    ],
)
def test_x86_64_default_direct_map_is_that_of_the_release(release, depth, base):
    x86 = X86(depth, text=0xFFFFFFFF81000000)
    put_uts(x86.guest, IMAGE + UTS, release)
    x86.guest.lost_pages.add(x86.root // PAGE)
    kernel = x86.kernel(x86.info(OSRELEASE=release, KERNELOFFSET=0))
    assert kernel.page_offset == base
    assert kernel.space is not None
    assert [rule.name for rule in kernel.space.linear] == ["text"]
    if base is not None:
        assert kernel.origins["page_offset"] == "the default, unconfirmed"


def test_x86_64_header_tells_the_release_where_vmcoreinfo_does_not():
    guest = Guest(64, uts=Utsname("Linux", release="2.6.32-754.el6.x86_64"))
    assert find_kernel(guest).page_offset == 0xFFFF880000000000
    guest = Guest(64, uts=Utsname("Linux", release="6.1.0"))  # may have KASLR
    assert find_kernel(guest).page_offset is None
    assert find_kernel(Guest(64)).page_offset is None


def test_x86_64_zeroed_root_table_does_not_make_phys_base_a_guess():
    x86 = X86()
    x86.guest.put(x86.root, bytes(PAGE))
    kernel = x86.kernel(x86.info())
    assert kernel.phys_base == x86.phys_base
    assert kernel.origins["phys_base"] == "VMCOREINFO NUMBER(phys_base)"
    assert kernel.uts.release == "6.1.0-test"
    assert any("no page tables where" in problem for problem in kernel.problems)


def test_x86_64_what_vmcoreinfo_says_is_kept_where_nothing_can_be_looked_at():
    x86 = X86()
    x86.guest.put(x86.root, bytes(PAGE))
    x86.guest.lost_pages.add((IMAGE + UTS) // PAGE)
    kernel = x86.kernel(x86.info())
    assert kernel.phys_base == x86.phys_base
    assert kernel.origins["phys_base"] == "VMCOREINFO NUMBER(phys_base), unconfirmed"


def test_x86_64_image_is_found_by_its_name_where_phys_base_is_not_told():
    x86 = X86(physical=2 * MB + IMAGE, text=0xFFFFFFFF92500000)
    kernel = x86.kernel(x86.info(**{"NUMBER(phys_base)": None}))
    assert kernel.phys_base == x86.phys_base
    assert kernel.origins["phys_base"] == "a search for the kernel's name"
    assert kernel.page_offset == DIRECT
    assert kernel.space is not None
    assert kernel.space.read(x86.text + UTS, 5) == b"Linux"


def test_x86_64_default_is_tried_where_nothing_that_would_tell_is_in_the_dump():
    """A kernel before phys_base was told, in a dump that lacks both its root table and its name."""
    x86 = X86(text=0xFFFFFFFF80100000)
    x86.guest.lost_pages |= {x86.root // PAGE, (IMAGE + UTS) // PAGE}
    kernel = x86.kernel(x86.info(**{"NUMBER(phys_base)": None}))
    assert kernel.phys_base == 0
    assert kernel.text is not None
    assert not kernel.doubt or "not where it says" not in kernel.doubt
    assert any("could not be checked" in problem for problem in kernel.problems)


def test_x86_64_refuted_guesses_place_nothing():
    x86 = X86()
    put_uts(x86.guest, IMAGE + UTS, "5.5.5-another")
    x86.guest.put(x86.root, bytes(PAGE))
    kernel = x86.kernel(x86.info(**{"NUMBER(phys_base)": None}))
    assert kernel.phys_base is None
    assert kernel.text is None
    assert kernel.page_offset is None
    assert kernel.space is None


def test_x86_64_by_cr3_when_there_is_no_vmcoreinfo():
    x86 = X86()
    x86.cr3_note(x86.root | 0x18)
    kernel = x86.kernel()
    assert kernel.phys_base == x86.phys_base
    assert kernel.kaslr_offset == TEXT - 0xFFFFFFFF81000000
    assert kernel.page_offset == DIRECT
    assert kernel.text == (TEXT, IMAGE, MB)
    assert kernel.problems == ("the dump carries no VMCOREINFO",)


def test_x86_64_cr3_of_a_process_under_page_table_isolation_leads_to_the_kernels_half():
    x86 = X86()
    root, user = 0x300000, 0x301000
    x86.guest.put(root, bytes(x86.guest.memory[x86.root : x86.root + PAGE]))
    x86.guest.put(user + 8 * 511, x86.guest.get(x86.root + 8 * 511))
    x86.cr3_note(user)
    kernel = x86.kernel()
    assert kernel.space is not None
    assert kernel.space.tables.root == root
    assert kernel.page_offset == DIRECT


@pytest.mark.parametrize("cr3", [0, 0x200000, 0xFFFFFFFFFFFFFFFF])
def test_x86_64_cr3_that_leads_nowhere_does_no_harm(cr3: int):
    x86 = X86()
    x86.cr3_note(cr3)
    assert x86.kernel().phys_base == 0


def test_x86_64_symbols_of_a_file_are_moved_to_where_the_tables_have_the_kernel():
    x86 = X86()
    x86.cr3_note(x86.root)
    shift = TEXT - 0xFFFFFFFF81000000
    linked = x86.info(
        **{
            "SYMBOL(_stext)": "ffffffff81000000",
            "SYMBOL(init_uts_ns)": f"{0xFFFFFFFF81000000 + UTS:x}",
            "SYMBOL(init_top_pgt)": f"{x86.root_vaddr - shift:x}",
            "NUMBER(phys_base)": None,
            "KERNELOFFSET": None,
        }
    )
    kernel = x86.kernel(vmcoreinfo=linked)
    assert kernel.problems == ()
    assert kernel.kaslr_offset == shift
    assert kernel.uts.nodename == "node"


def arm64(voffset: int = 0xFFFF7FFFC8000000, bits: int = 48, phys: int = 0) -> tuple[Guest, dict[str, object]]:
    """A 4 KiB-page kernel with its image at 1 MiB and the linear map at the lowest address."""
    guest = Guest(1024, machine="aarch64")
    vaddr = (IMAGE + voffset) % TOP
    root = IMAGE + 0x80000
    tables = iter(range(root + PAGE, root + 64 * PAGE, PAGE))

    def map_page(va: int, pa: int) -> None:
        table = root
        for shift in (39, 30, 21):
            if shift == 39 and bits == 39:
                continue
            slot = table + 8 * (va >> shift & 511)
            if not guest.get(slot):
                guest.put(slot, next(tables) | 3)
            table = guest.get(slot) & ~0xFFF
        guest.put(table + 8 * (va >> 12 & 511), pa | 3)

    for offset in range(0, MB, PAGE):
        map_page(vaddr + offset, IMAGE + offset)
    for offset in range(0, 4 * MB, PAGE):
        map_page(TOP - (1 << bits) + offset, offset)
    put_uts(guest, IMAGE + UTS)
    return guest, {
        "OSRELEASE": "6.1.0-test",
        "PAGESIZE": 4096,
        "SYMBOL(init_uts_ns)": f"{vaddr + UTS:x}",
        "OFFSET(uts_namespace.name)": 0,
        "SYMBOL(_stext)": f"{vaddr + 0x10000:x}",
        "SYMBOL(swapper_pg_dir)": f"{vaddr + root - IMAGE:x}",
        "NUMBER(VA_BITS)": bits,
        "NUMBER(TCR_EL1_T1SZ)": hex(64 - bits),
        "NUMBER(kimage_voffset)": hex(voffset),
        "NUMBER(PHYS_OFFSET)": hex(phys),
        "KERNELOFFSET": "0",
    }


def render(values: dict[str, object]) -> bytes:
    return "".join(f"{k}={v}\n" for k, v in values.items() if v is not None).encode()


@pytest.mark.parametrize("bits", [48, 39])
def test_aarch64_by_vmcoreinfo(bits: int):
    guest, values = arm64(0xFFFF7FFFC8000000 if bits == 48 else 0xFFFFFFC008000000, bits)
    guest.text = render(values)
    kernel = find_kernel(guest)
    assert kernel.problems == ()
    assert kernel.page_offset == TOP - (1 << bits)
    assert kernel.uts.nodename == "node"
    assert kernel.text is not None
    assert kernel.text[0] <= int(str(values["SYMBOL(_stext)"]), 16) < sum(kernel.text[::2])


def test_aarch64_bits_come_from_va_bits_when_t1sz_is_not_told():
    guest, values = arm64()
    guest.text = render(values | {"NUMBER(TCR_EL1_T1SZ)": None})
    assert find_kernel(guest).problems == ()


def test_aarch64_a_wrong_phys_offset_is_refuted_by_the_tables():
    guest, values = arm64()
    guest.text = render(values | {"NUMBER(PHYS_OFFSET)": "0x100000"})
    kernel = find_kernel(guest)
    assert kernel.page_offset is None
    assert "the linear map was not found" in kernel.problems
    assert kernel.uts.nodename == "node"  # by way of the image's own map


def test_aarch64_without_vmcoreinfo_says_what_it_needs():
    kernel = find_kernel(Guest(16, machine="aarch64"))
    assert kernel.space is None
    assert "aarch64 needs VMCOREINFO to find the kernel's memory" in kernel.problems


def s390_guest(text: bytes) -> Guest:
    guest = Guest(256, "big", machine="s390x")
    for i in range(2048):
        guest.put(0x10000 + 8 * i, 0x24)
        guest.put(0x14000 + 8 * i, 0x20)
    guest.put(0x10000, 0x14000 | 4 | 3)
    guest.put(0x14000, 0x400)  # the first MiB maps itself
    put_uts(guest, 0x20000)
    guest.put(0x30000, build_note(b"VMCOREINFO", 0, text, "big"))
    return guest


S390_TEXT = b"OSRELEASE=6.1.0-test\nPAGESIZE=4096\nSYMBOL(init_uts_ns)=20000\nOFFSET(uts_namespace.name)=0\n" + (
    b"SYMBOL(swapper_pg_dir)=10000\nSYMBOL(lowcore_ptr)=40000\n"
)


def test_s390x_vmcoreinfo_by_the_lowcore():
    guest = s390_guest(S390_TEXT)
    guest.put(0xE0C, 0x30000)
    kernel = find_kernel(guest)
    assert kernel.problems == ()
    assert kernel.origins["vmcoreinfo"] == "the note that lowcore 0xe0c points to"
    assert kernel.uts.nodename == "node"
    assert kernel.page_offset == 0


def test_s390x_vmcoreinfo_by_os_info():
    guest = s390_guest(S390_TEXT)
    guest.put(0xE18, 0x31000)
    guest.put(0x31000, 0x4F53494E464F535A)
    guest.put(0x31000 + 32, 0x32000)
    guest.put(0x31000 + 40, len(S390_TEXT))
    guest.put(0x32000, S390_TEXT)
    kernel = find_kernel(guest)
    assert kernel.problems == ()
    assert kernel.origins["vmcoreinfo"] == "os_info (lowcore 0xe18)"


def test_s390x_tables_by_control_registers():
    guest = s390_guest(S390_TEXT)
    registers = [0] * 16
    registers[13] = 0x10000 | 4 | 3
    guest.note_bytes = build_note(b"LINUX", 0x304, struct.pack(">16Q", *registers), "big")
    kernel = find_kernel(guest)
    assert kernel.space is not None
    assert kernel.space.tables is not None
    assert kernel.space.read(0x20000, 5) == b"Linux"


@pytest.mark.parametrize("pointer", [0x30001, 0xFFFFFFFFFFFFFFF0, 0x40000, 4])
def test_s390x_wild_lowcore_pointers_do_no_harm(pointer: int):
    guest = s390_guest(S390_TEXT)
    guest.put(0xE0C, pointer)
    guest.put(0xE18, pointer)
    assert find_kernel(guest).vmcoreinfo is None


def test_s390x_image_and_identity_mapping_apart_since_6_10():
    guest = s390_guest(S390_TEXT)
    shift = 0x3FFE0000000
    text = (
        b"OSRELEASE=6.10.0\nPAGESIZE=4096\nSYMBOL(init_uts_ns)=%x\nOFFSET(uts_namespace.name)=0\n"
        b"SYMBOL(_stext)=%x\nKERNELOFFSET=%x\nKERNELOFFPHYS=0\nIDENTITYBASE=0\n"
        % (shift + 0x20000, shift + 0x100000, shift)
    )
    guest.put(0x30000, build_note(b"VMCOREINFO", 0, text, "big"))
    guest.put(0xE0C, 0x30000)
    kernel = find_kernel(guest)
    assert kernel.uts.nodename == "node"
    assert kernel.kaslr_offset == shift


@pytest.mark.parametrize(("word", "name"), [(0x7C0802A6, "moves"), (0x60000000, "no-ops")])
@pytest.mark.parametrize("order", ["little", "big"])
def test_ppc64_byte_order_is_that_of_its_instructions(order: str, word: int, name: str):
    guest = Guest(16, "big", machine="ppc64")
    guest.put(0x100, word.to_bytes(4, order) * 0xBC0)
    kernel = find_kernel(guest)
    if name == "moves":
        assert (kernel.byteorder, kernel.machine) == (order, "ppc64le" if order == "little" else "ppc64")
    else:
        assert kernel.byteorder == "big"  # the dump's, for want of better


FLAT = [
    ("i686", 4, b"SYMBOL(_stext)=c1000000\n", 0xC0000000, 0),
    ("i686", 4, b"SYMBOL(_stext)=81000000\n", 0x80000000, 0),
    ("arm", 4, b"SYMBOL(_stext)=c0208280\n", 0xC0000000, 0),
    ("ppc64", 8, b"", 0xC000000000000000, 0),
    ("loongarch64", 8, b"", 0x9000000000000000, 0),
    ("riscv64", 8, b"NUMBER(PAGE_OFFSET)=0xff60000000000000\nNUMBER(phys_ram_base)=0x0\n", 0xFF60000000000000, 0),
]


@pytest.mark.parametrize(
    ("machine", "word", "more", "base", "paddr"), FLAT, ids=[f"{m}-{b:x}" for m, _, _, b, _ in FLAT]
)
def test_direct_map_of_the_other_architectures(machine: str, word: int, more: bytes, base: int, paddr: int):
    guest = Guest(64, "big" if machine == "ppc64" else "little", machine=machine)
    put_uts(guest, 0x5000)
    guest.text = b"OSRELEASE=6.1.0\nPAGESIZE=4096\nSYMBOL(init_uts_ns)=%x\nOFFSET(uts_namespace.name)=0\n" % (
        base + 0x5000 - paddr
    )
    guest.text += more
    kernel = find_kernel(guest)
    assert kernel.word_size == word
    assert kernel.page_offset == base - paddr
    assert kernel.uts.nodename == "node"


def test_riscv64_image_has_its_own_map():
    guest = Guest(64, machine="riscv64")
    put_uts(guest, 0x5000)
    guest.text = (
        b"OSRELEASE=6.1.0\nPAGESIZE=4096\nSYMBOL(init_uts_ns)=ffffffff80005000\nOFFSET(uts_namespace.name)=0\n"
        b"NUMBER(PAGE_OFFSET)=0xff60000000000000\nNUMBER(phys_ram_base)=0x0\nNUMBER(KERNEL_LINK_ADDR)=0xffffffff80000000\n"
        b"NUMBER(va_kernel_pa_offset)=0xffffffff80000000\n"
    )
    assert find_kernel(guest).uts.nodename == "node"


@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "s390x", "i686", "arm", "ppc64", "riscv64", "loongarch64"])
def test_no_architecture_fails_on_an_empty_machine(machine: str):
    arch = arch_for(machine)
    assert arch is not None
    guest = Guest(1, arch.byteorder, machine=machine)
    facts = LayoutFacts(guest.phys(), guest.meta, (), None, arch.byteorder, PAGE)
    arch.build_layout(facts)
