"""A thread for every task: whose note has which number and which registers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dumpfs.arch.base import arch_for
from dumpfs.elf.core_notes import build_core_notes
from dumpfs.errors import DumpfsError, ViewError
from dumpfs.linux.tasks import Task
from dumpfs.notes import NT_PRSTATUS, Note, build_note, parse_notes
from dumpfs.vfs.views.vmcore_tasks import VmcoreTasksFile, find_threads
from tests.unit.vfs.fakes import FakeImage, S, fake_dump, fake_kernel

IDLE = 1 << 22
X86 = arch_for("x86_64")
LAYOUT = X86.prstatus


def task(pid: int, cpu: int = 0, running: bool = False, ppid: int = 1, vaddr: int = 0) -> Task:
    return Task(vaddr, pid, pid, ppid, f"task{pid}", "S", 0, 0, 0, 0, cpu, running)


def cpu_note(pid: int, rip: int) -> bytes:
    desc = bytearray(LAYOUT.descsz)
    desc[32:36] = pid.to_bytes(4, "little")
    offset = next(offset for name, offset, _ in LAYOUT.registers if name == "rip")
    desc[offset : offset + 8] = rip.to_bytes(8, "little")
    return build_note(b"CORE", NT_PRSTATUS, bytes(desc), "little")


class Machine:
    """A dump with processors' notes and tasks."""

    def __init__(self, notes: list[tuple[int, int]], tasks: list[Task], cpus: tuple[int, ...] | None = None) -> None:
        self.image = FakeImage(dict.fromkeys(range(4), S), notes=b"".join(cpu_note(*note) for note in notes))
        kernel = fake_kernel(arch=X86, image=self.image, notes=tuple(parse_notes(self.image.notes(), "little")))
        self.dump = fake_dump(self.image, kernel)
        self.inspector = SimpleNamespace(
            kernel=kernel,
            tasks=tuple(tasks),
            cpus=cpus if cpus is not None else tuple(range(len(notes))),
            registers=lambda t: {"rip": 0x1000 + t.pid, "rsp": 0x2000},
            problems=[],
        )
        self.dump.inspection = SimpleNamespace(inspector=self.inspector, missing=lambda: None)

    def threads(self) -> list[tuple[int, int]]:
        """(pr_pid, rip) of every note that the core has."""
        found = find_threads(self.dump)
        notes = build_core_notes(self.image.notes(), "little", "little", 8, None, b"", found)
        return [self.thread(note) for note in parse_notes(notes.data, "little")]

    @staticmethod
    def thread(note: Note) -> tuple[int, int]:
        return LAYOUT.pid(note.desc, "little"), LAYOUT.parse_registers(note.desc, "little")["rip"]


def test_processors_come_first_with_their_own_registers():
    machine = Machine([(7, 0xAAA), (9, 0xBBB)], [task(7, 0, True), task(8), task(9, 1, True), task(10)])
    assert machine.threads() == [(7, 0xAAA), (9, 0xBBB), (8, 0x1008), (10, 0x100A)]


def test_a_processors_thread_has_the_pid_of_what_ran_whatever_the_note_says():
    machine = Machine([(1, 0xAAA), (2, 0xBBB)], [task(70, 0, True), task(1), task(90, 1, True)])
    assert machine.threads() == [(70, 0xAAA), (90, 0xBBB), (1, 0x1001)]


def test_a_processor_of_whose_task_nothing_is_known_takes_no_other_tasks_pid():
    machine = Machine([(1, 0xAAA), (2, 0xBBB)], [task(0, 0, True), task(2)])
    assert machine.threads() == [(IDLE, 0xAAA), (IDLE + 1, 0xBBB), (2, 0x1002)]


def test_idle_tasks_have_numbers_of_their_own_by_processor():
    machine = Machine([(0, 0xAAA), (5, 0xBBB)], [task(0, 0, True), task(0, 1), task(5, 1, True)])
    assert machine.threads() == [(IDLE, 0xAAA), (5, 0xBBB), (IDLE + 1, 0x1000)]


def test_a_pid_that_is_taken_is_replaced():
    machine = Machine([(5, 0xAAA)], [task(5, 0, True), task(5), task(5)])
    pids = [pid for pid, _ in machine.threads()]
    assert pids == [5, IDLE, IDLE + 1]


def test_missing_notes_are_told_apart_by_pid():
    machine = Machine([(9, 0xBBB)], [task(7, 0, True), task(9, 1, True), task(8)], cpus=(0, 1))
    assert machine.threads() == [(9, 0xBBB), (8, 0x1008)]
    assert find_threads(machine.dump).notices == (
        "tasks on processors that left no registers are not among the threads: task7 (7)",
    )


def test_tasks_whose_registers_cannot_be_read_are_named():
    machine = Machine([(7, 0xAAA)], [task(7, 0, True), task(8), task(9)])

    def registers(t: Task) -> dict[str, int]:
        if t.pid == 8:
            raise DumpfsError("its stack is not in the dump")
        return {"rip": 1}

    machine.inspector.registers = registers
    assert machine.threads() == [(7, 0xAAA), (9, 1)]
    told = find_threads(machine.dump).notices[0]
    assert told.startswith("1 tasks are not among the threads")
    assert "task8 (8): its stack is not in the dump" in told


def test_a_note_says_that_the_task_was_in_the_kernel():
    machine = Machine([], [task(8, ppid=3)], cpus=(0,))
    note = next(iter(parse_notes(find_threads(machine.dump).data, "little")))
    registers = LAYOUT.parse_registers(note.desc, "little")
    assert (registers["cs"], registers["ss"], registers["rsp"]) == (0x10, 0x18, 0x2000)
    assert int.from_bytes(note.desc[36:40], "little") == 3
    assert len(note.desc) == LAYOUT.descsz


def test_numbers_are_unique_and_never_zero():
    machine = Machine([(0, 1), (0, 2)], [task(0, 0, True), task(0, 1, True), task(0, 0), *map(task, range(1, 50))])
    pids = [pid for pid, _ in machine.threads()]
    assert 0 not in pids
    assert len(set(pids)) == len(pids) == 52


def test_other_notes_stay_between_processors_and_tasks():
    machine = Machine([(7, 0xAAA)], [task(7, 0, True), task(8)])
    machine.image._notes += build_note(b"VMCOREINFO", 0, b"OSRELEASE=6.1\n", "little")
    found = find_threads(machine.dump)
    notes = build_core_notes(machine.image.notes(), "little", "little", 8, None, b"", found)
    assert [n.name for n in parse_notes(notes.data, "little")] == [b"CORE", b"VMCOREINFO", b"CORE"]


def test_a_machine_whose_tasks_cannot_be_told_has_no_such_file():
    machine = Machine([], [])
    machine.dump.kernel.machine = "s390x"
    assert "s390x" in (VmcoreTasksFile.missing(machine.dump) or "")
    with pytest.raises(ViewError, match="s390x"):
        find_threads(machine.dump)


def test_a_kernel_without_types_fails_with_the_reason():
    machine = Machine([], [])

    class Broken(SimpleNamespace):
        @property
        def tasks(self) -> tuple[Task, ...]:
            raise ViewError("its structures are unknown")

    machine.dump.inspection.inspector = Broken(kernel=machine.inspector.kernel)
    node = machine.dump.tree.lookup_path("vmcore-tasks")
    assert not node.ready
    with pytest.raises(ViewError, match="structures are unknown"):
        node.build()
    assert machine.dump.failed[node.ino] == "its structures are unknown"
