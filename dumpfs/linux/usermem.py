"""The user half of a process: its memory areas and the bytes in them, as far as the dump has them.

Areas hang on a list (`mm->mmap`) before 6.1 and in a maple tree (`mm->mm_mt`) since. A tree's node is 256 bytes; the
low byte of a pointer to it tells its kind; slot i holds what lies between pivot i-1 and pivot i.

Sources: Linux include/linux/maple_tree.h and lib/maple_tree.c (nodes, encoding of pointers), fs/proc/task_mmu.c
(columns of maps), fs/d_path.c (paths), include/linux/mm.h (VM_ flags).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dumpfs.arch.walk import PageTables
from dumpfs.arch.x86_64 import page_tables
from dumpfs.errors import DumpfsError, ViewError, page_error
from dumpfs.linux.inspect import Inspector
from dumpfs.linux.records import Record, note_problem, read_record
from dumpfs.memory.virtual import AddressSpace
from dumpfs.units import READABLE, one_line

_MAX_AREAS = 200_000
"""vm.max_map_count is 65530 by default."""
_MAX_DEPTH = 16
_MAX_NODES = 50_000
_MAX_ARGUMENTS = 2 << 20
"""Bytes of a command line: ARG_MAX."""
_MAX_COMPONENTS = 128
_MAX_NAME = 256
_NODE_MASK = 0xFF
_KIND_SHIFT, _KIND_MASK = 3, 0xF
_LEAF_64, _RANGE_64, _ARANGE_64 = 1, 2, 3
_VM_READ, _VM_WRITE, _VM_EXEC, _VM_MAYSHARE = 1, 2, 4, 0x80
_NAME_COLUMN = 73
"""Column of the file name in maps on 64-bit kernels: 25 + 6 * sizeof(void *)."""


@dataclass(frozen=True, slots=True)
class Area:
    """One memory area of a process (`struct vm_area_struct`)."""

    start: int
    stop: int
    flags: int
    """VM_ bits."""
    offset: int
    """Bytes into the file; 0 without one."""
    device: int
    """Kernel's dev_t of the file's file system."""
    inode: int
    name: str
    """Path, '[heap]', '[stack]', '[vdso]' or ''."""

    def render(self, word_size: int) -> str:
        """The line of /proc/PID/maps."""
        kinds = ((_VM_READ, "r"), (_VM_WRITE, "w"), (_VM_EXEC, "x"))
        rights = "".join(letter if self.flags & bit else "-" for bit, letter in kinds)
        rights += "s" if self.flags & _VM_MAYSHARE else "p"
        text = (
            f"{self.start:08x}-{self.stop:08x} {rights} {self.offset:08x}"
            f" {self.device >> 20:02x}:{self.device & 0xFFFFF:02x} {self.inode} "
        )
        column = _NAME_COLUMN if word_size == 8 else _NAME_COLUMN - 24
        return (text.ljust(column) + one_line(self.name) if self.name else text) + "\n"


class UserMemory:
    """The user half of one process.

    Args:
        inspector: of the kernel.
        mm: address of its mm_struct.

    Raises:
        DumpfsError: the mm_struct cannot be read.
    """

    def __init__(self, inspector: Inspector, mm: int) -> None:
        self.inspector = inspector
        self.space = inspector.space
        self.types = inspector.types
        self.mm = read_record(self.space, self.types, "mm_struct", mm)

    # -- bytes

    def memory(self) -> AddressSpace:
        """Its virtual memory, by its own page tables.

        Raises:
            ViewError: dumpfs does not know user page tables of this architecture.
        """
        kernel = self.inspector.kernel
        tables = self.space.tables
        if kernel.machine != "x86_64" or not isinstance(tables, PageTables):
            raise ViewError(f"dumpfs cannot walk user page tables of {kernel.machine or 'this machine'}")
        info = kernel.vmcoreinfo
        mask = (info.number("sme_mask") or 0) if info is not None else 0
        root = self.space.translate(self.mm.value("pgd"))
        user = page_tables(kernel.phys, root, len(tables.levels), mask & (1 << 64) - 1, user=True)
        return AddressSpace(kernel.phys, self.space.byteorder, self.space.word_size, (), user)

    def read_cmdline(self) -> bytes:
        """The process's arguments, each with its NUL, as /proc/PID/cmdline has them.

        Raises:
            DumpfsError: the page is not in the dump (user pages are left out by most), or the bounds are wild.
        """
        start, size = self._arguments()
        return self.memory().read(start, size) if size else b""

    def check_cmdline(self) -> None:
        """Raise what `read_cmdline` would, by the states of the pages: none is decoded."""
        start, size = self._arguments()
        if not size:
            return
        memory = self.memory()
        phys = memory.phys
        for paddr, length in memory.runs(start, size):
            for pfn in range(paddr >> phys.page_shift, (paddr + length - 1 >> phys.page_shift) + 1):
                state = phys.state(pfn)
                if state not in READABLE:
                    raise page_error(pfn, state)

    def _arguments(self) -> tuple[int, int]:
        """Address and bytes of the arguments."""
        start, stop = self.mm.value("arg_start"), self.mm.value("arg_end")
        if stop - start > _MAX_ARGUMENTS:
            raise DumpfsError(f"a command line of {stop - start} bytes cannot be")
        return start, max(stop - start, 0)

    # -- areas

    def areas(self, problems: list[str]) -> Iterator[Area]:
        """Its memory areas, ascending; what cannot be read is told in `problems`."""
        for count, vaddr in enumerate(self._addresses(problems)):
            if count >= _MAX_AREAS:
                note_problem(problems, f"more than {_MAX_AREAS} areas, the rest is left out")
                return
            try:
                area = self._read_area(vaddr)
            except DumpfsError as exc:
                note_problem(problems, f"area at {vaddr:#x}: {exc}")
                continue
            if area.start >= area.stop:
                note_problem(problems, f"no area at {vaddr:#x}: it would reach from {area.start:#x} to {area.stop:#x}")
                continue
            yield area

    def _addresses(self, problems: list[str]) -> Iterator[int]:
        if self.types.has("mm_struct", "mm_mt"):
            yield from MapleTree(self.inspector, problems).entries(self.mm.value("mm_mt.ma_root"))
            return
        link = self.types.offset("vm_area_struct", "vm_next")
        node = self.mm.value("mmap")
        seen: set[int] = set()
        while node and len(seen) <= _MAX_AREAS:
            if node in seen:
                note_problem(problems, "the list of areas runs in a circle")
                return
            seen.add(node)
            yield node
            try:
                node = self.space.read_word(node + link)
            except DumpfsError as exc:
                note_problem(problems, f"list of areas: {exc}")
                return

    def _read_area(self, vaddr: int) -> Area:
        vma = read_record(self.space, self.types, "vm_area_struct", vaddr)
        start, stop = vma.value("vm_start"), vma.value("vm_end")
        offset = device = inode = 0
        file = vma.get("vm_file") or 0
        if file:
            offset = vma.value("vm_pgoff") * self.inspector.kernel.page_size
            node = self.space.read_word(file + self.types.offset("file", "f_inode"))
            inode = self.space.read_word(node + self.types.offset("inode", "i_ino"))
            block = self.space.read_word(node + self.types.offset("inode", "i_sb"))
            device = self.space.read_u32(block + self.types.offset("super_block", "s_dev"))
            name = self._path(file)
        else:
            name = self._special(vma, start, stop)
        return Area(start, stop, vma.value("vm_flags", "__vm_flags"), offset, device, inode, name)

    def _special(self, vma: Record, start: int, stop: int) -> str:
        """Name of an area without a file."""
        mm = self.mm
        if (mm.get("context.vdso") or 0) == start:
            return "[vdso]"
        if vma.value("vm_mm") == 0:
            return "[vdso]"
        brk, start_brk, stack = mm.value("brk"), mm.value("start_brk"), mm.value("start_stack")
        if start < brk and stop > start_brk:
            return "[heap]"
        if start <= stack <= stop:
            return "[stack]"
        operations = vma.get("vm_ops") or 0
        if operations and operations == self.inspector.find_symbol("special_mapping_vmops"):
            mapping = vma.value("vm_private_data")
            text = self.space.read_word(mapping + self.types.offset("vm_special_mapping", "name"))
            return self.space.read_cstring(text, _MAX_NAME).decode("utf-8", "backslashreplace")
        return ""

    def _path(self, file: int) -> str:
        """Path of an open file, '/' where it cannot be followed further up."""
        space, types = self.space, self.types
        path = types.offset("file", "f_path")
        dentry = space.read_word(file + path + types.offset("path", "dentry"))
        mount = space.read_word(file + path + types.offset("path", "mnt"))
        parent_at, length_at = types.offset("dentry", "d_parent"), types.offset("dentry", "d_name.len")
        name_at = types.offset("dentry", "d_name.name")
        root_at = types.offset("vfsmount", "mnt_root")
        inside = types.offset("mount", "mnt")
        names: list[str] = []
        for _ in range(_MAX_COMPONENTS):
            if dentry == space.read_word(mount + root_at):
                holder = mount - inside
                parent = space.read_word(holder + types.offset("mount", "mnt_parent"))
                if parent == holder or not parent:
                    break
                dentry = space.read_word(holder + types.offset("mount", "mnt_mountpoint"))
                mount = parent + inside
                continue
            parent = space.read_word(dentry + parent_at)
            if parent == dentry:
                break
            length = min(space.read_u32(dentry + length_at), _MAX_NAME)
            name = space.read(space.read_word(dentry + name_at), length)
            names.append(name.decode("utf-8", "backslashreplace").replace("\n", "\\012"))
            dentry = parent
        return "/" + "/".join(reversed(names))


class MapleTree:
    """Reads the entries of maple trees.

    Args:
        inspector: of the kernel.
        problems: told what could not be read.
    """

    def __init__(self, inspector: Inspector, problems: list[str]) -> None:
        self.space = inspector.space
        self.types = inspector.types
        self.problems = problems
        self._nodes = 0

    def entries(self, root: int) -> Iterator[int]:
        """Everything stored in the tree with that `ma_root`, in order."""
        if root & 3 != 2 or root <= 4096:
            if root & 3 == 0 and root:
                yield root  # a single entry, for index 0
            return
        self._nodes = 0
        yield from self._walk(root, (1 << 8 * self.space.word_size) - 1, 0)

    def _walk(self, pointer: int, last: int, depth: int) -> Iterator[int]:
        kind = pointer >> _KIND_SHIFT & _KIND_MASK
        self._nodes += 1
        if depth > _MAX_DEPTH or self._nodes > _MAX_NODES or kind not in (_LEAF_64, _RANGE_64, _ARANGE_64):
            note_problem(self.problems, f"maple tree: node {pointer:#x} is no node, or too deep in it")
            return
        try:
            node = read_record(self.space, self.types, "maple_node", pointer & ~_NODE_MASK)
        except DumpfsError as exc:
            note_problem(self.problems, f"maple tree: {exc}")
            return
        body = "ma64" if kind == _ARANGE_64 else "mr64"
        slots = self.types.member("maple_node", f"{body}.slot").length
        pivots = self.types.member("maple_node", f"{body}.pivot").length
        for index in range(slots):
            pivot = node.value(f"{body}.pivot[{index}]") if index < pivots else last
            if not pivot and index:
                pivot = last  # behind the last pivot in use
            entry = node.value(f"{body}.slot[{index}]")
            if kind == _LEAF_64:
                if entry and not entry & 3:
                    yield entry
            elif entry & 3 == 2 and entry > 4096:
                yield from self._walk(entry, min(pivot, last), depth + 1)
            if pivot >= last:
                return
