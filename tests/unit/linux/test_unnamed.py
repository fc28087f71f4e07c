"""BTF and the first task, found where the kernel has no names for its data."""

from __future__ import annotations

import pytest

from dumpfs.errors import ViewError
from dumpfs.linux.unnamed import find_btf, find_init_task
from tests.build.btf import BtfBuilder
from tests.unit.linux.kernelmem import Memory
from tests.unit.linux.test_tasks import INIT, Machine

BASE = 0xFFFFFFFF81000000


def build_btf(byteorder: str, name: str = "task_struct") -> bytes:
    builder = BtfBuilder(byteorder)
    builder.struct(name, 64, [])
    for number in range(4000):
        builder.integer(f"some_integer_{number}", 4)
    return builder.build()


@pytest.mark.parametrize("byteorder", ["little", "big"])
def test_types_are_found_by_their_header(byteorder):
    memory = Memory(byteorder)
    blob = build_btf(byteorder)
    memory.write(BASE, bytes(0x40000))
    memory.write(BASE + 0x100, blob[:24])  # a header without its types
    memory.write(BASE + 0x3F8, blob)
    assert find_btf(memory.space, [(BASE, 0x40000)]) == blob


def test_types_of_something_else_are_passed_over():
    memory = Memory()
    memory.write(BASE, build_btf("little", "no_task"))
    with pytest.raises(ViewError, match="without BTF"):
        find_btf(memory.space, [(BASE, 0x40000)])


def test_first_task_is_found_by_name_and_list():
    machine = Machine()
    decoy = INIT + 0x2000
    machine.put_task(decoy, 0, 0, "swapper/0")
    machine.memory.put(decoy + 24, INIT + 24)  # its successor does not point back
    reader = machine.reader
    assert find_init_task(machine.memory.space, reader.types, [(INIT - 0x10000, 0x20000)]) == INIT


def test_image_without_a_first_task_says_so():
    machine = Machine()
    machine.memory.put(machine.leaders[0] + 32, 0)
    with pytest.raises(ViewError, match="first task"):
        find_init_task(machine.memory.space, machine.reader.types, [(INIT, 0x1000)])
