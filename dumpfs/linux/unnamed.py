"""What a kernel holds but has no symbol for: without CONFIG_KALLSYMS_ALL only functions have names.

BTF gives itself away by its header, the first task by its name and by the list it begins.

Sources: Linux include/uapi/linux/btf.h (header), init/init_task.c and kernel/sched/core.c (name of the idle tasks).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from dumpfs.errors import DumpfsError, ViewError
from dumpfs.linux.btf import MAX_BTF, Btf, Kind
from dumpfs.linux.records import find_bytes, read_record
from dumpfs.linux.types import Types
from dumpfs.memory.virtual import AddressSpace

_HEADER_SIZE = 24
_MAX_HEADERS = 64
_MIN_BTF = 1 << 16
"""Bytes; smaller ones are of modules or programs."""
_MAX_NAMES = 4096
_IDLE_NAMES = (b"swapper/0\0", b"swapper\0")
"""On kernels for several processors, and for one."""


def find_btf(space: AddressSpace, ranges: Iterable[tuple[int, int]]) -> bytes:
    """The kernel's BTF, searched for in its image.

    Args:
        space: kernel memory.
        ranges: (address, bytes) of the kernel image's parts.

    Raises:
        ViewError: there is none.
    """
    order = space.byteorder
    needle = (0xEB9F).to_bytes(2, order) + b"\x01\x00" + _HEADER_SIZE.to_bytes(4, order) + bytes(4)
    for start, size in ranges:
        for vaddr in islice(find_bytes(space, start, size, needle), _MAX_HEADERS):
            try:
                words = [space.read_u32(vaddr + at) for at in (12, 16, 20)]
                types_size, strings_at, strings_size = words
                whole = _HEADER_SIZE + strings_at + strings_size
                if strings_at < types_size or not _MIN_BTF <= whole <= MAX_BTF:
                    continue
                data = space.read(vaddr, whole)
                if Btf(data, space.word_size).find("task_struct", Kind.STRUCT):
                    return data
            except DumpfsError:
                continue  # it only looked like one
    raise ViewError("the kernel was built without BTF (CONFIG_DEBUG_INFO_BTF), or it is not in the dump")


def find_init_task(space: AddressSpace, types: Types, ranges: Iterable[tuple[int, int]]) -> int:
    """Address of the first processor's idle task, searched for in the kernel image.

    It is named, has pid 0, and the task behind it on the list of tasks points back.

    Raises:
        MissingTypeError: task_struct is not known.
        ViewError: there is none.
    """
    comm, link = types.offset("task_struct", "comm"), types.offset("task_struct", "tasks")
    size = types.size("task_struct")
    image = tuple(ranges)
    for name in _IDLE_NAMES:
        for start, length in image:
            for vaddr in islice(find_bytes(space, start, length, name), _MAX_NAMES):
                task = vaddr - comm
                try:
                    record = read_record(space, types, "task_struct", task, size=size)
                    following = record.value("tasks.next")
                    if record.value("pid") or record.value("tgid") or following == task + link:
                        continue
                    if space.read_word(following + space.word_size) == task + link:
                        return task
                except DumpfsError:
                    continue  # the name stands elsewhere, too
    raise ViewError("the first task was not found in the kernel image", hint="-o vmlinux=FILE supplies symbols")
