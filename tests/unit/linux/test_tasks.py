"""Tasks: every list intact or damaged, letters of states, saved registers; and those of real dumps."""

from __future__ import annotations

import pytest

from dumpfs.errors import DumpfsError
from dumpfs.linux.records import walk_list
from dumpfs.linux.tasks import Task, TaskReader, processes, read_tasks, saved_registers, state_letter
from tests.unit.linux.kernelmem import Memory, make_types

INIT, FIRST = 0xFFFFFFFF82000000, 0xFFFF888000010000
STEP = 0x1000
TASK = {
    "__state": (0, 4),
    "exit_state": (4, 4),
    "stack": (8, 8),
    "flags": (16, 4),
    "cpu": (20, 4),
    "tasks.next": (24, 8),
    "tasks.prev": (32, 8),
    "mm": (40, 8),
    "pid": (48, 4),
    "tgid": (52, 4),
    "real_parent": (56, 8),
    "thread_node": (64, 16),
    "real_cred": (80, 8),
    "comm": (88, 16),
    "signal": (104, 8),
    "thread.sp": (112, 8),
}
STRUCTS = {
    "task_struct": (128, TASK),
    "signal_struct": (32, {"thread_head": (16, 16)}),
    "cred": (16, {"uid": (8, 4)}),
    "inactive_task_frame": (
        56,
        {n: (8 * i, 8) for i, n in enumerate(("r15", "r14", "r13", "r12", "bx", "bp", "ret_addr"))},
    ),
}


class Machine:
    """Tasks in memory: two processes, the second with a second thread."""

    def __init__(self) -> None:
        self.memory = Memory()
        self.problems: list[str] = []
        self.leaders = [FIRST, FIRST + STEP]
        self.thread = FIRST + 2 * STEP
        self.put_task(INIT, 0, 0, "swapper/0")
        self.put_task(self.leaders[0], 1, 1, "init", parent=INIT)
        self.put_task(self.leaders[1], 7, 7, "daemon", parent=self.leaders[0])
        self.put_task(self.thread, 8, 7, "worker", parent=self.leaders[0])
        self.memory.put_list(INIT + 24, [leader + 24 for leader in self.leaders])
        for number, threads in enumerate([[self.leaders[0]], [self.leaders[1], self.thread]]):
            signal = FIRST + 0x8000 + number * 0x100
            self.memory.put_list(signal + 16, [task + 64 for task in threads])
            for task in threads:
                self.memory.put(task + 104, signal)

    def put_task(self, vaddr: int, pid: int, tgid: int, comm: str, parent: int = 0) -> None:
        memory = self.memory
        memory.write(vaddr, bytes(128))
        memory.put(vaddr + 48, pid, 4)
        memory.put(vaddr + 52, tgid, 4)
        memory.put(vaddr + 56, parent)
        memory.write(vaddr + 88, comm.encode().ljust(16, b"\0"))

    @property
    def reader(self) -> TaskReader:
        return TaskReader(self.memory.space, make_types(STRUCTS), self.problems)

    def tasks(self) -> tuple[Task, ...]:
        return read_tasks(self.reader, INIT, {0: INIT}, {self.leaders[1]: 0})


def test_idle_processes_and_threads_are_found_in_order():
    machine = Machine()
    assert [(t.pid, t.tgid, t.ppid, t.comm) for t in machine.tasks()] == [
        (0, 0, 0, "swapper/0"),
        (1, 1, 0, "init"),
        (7, 7, 1, "daemon"),
        (8, 7, 1, "worker"),
    ]
    assert not machine.problems


def test_running_task_is_known_by_its_processor():
    assert [t.pid for t in Machine().tasks() if t.running] == [7]


def test_threads_are_gathered_by_process():
    assert {tgid: [t.pid for t in found] for tgid, found in processes(Machine().tasks()).items()} == {
        1: [1],
        7: [7, 8],
    }


def test_circle_that_misses_its_head_ends_with_a_problem():
    machine = Machine()
    machine.memory.put(machine.leaders[1] + 24, machine.leaders[0] + 24)
    assert [t.pid for t in machine.tasks()] == [0, 1, 7, 8]
    assert "circle" in machine.problems[0]


@pytest.mark.parametrize("wild", [0, 8, 0xDEAD000000000100, (1 << 64) - 8])
def test_wild_pointer_ends_the_list_with_a_problem(wild):
    machine = Machine()
    machine.memory.put(machine.leaders[0] + 24, wild)
    assert [t.pid for t in machine.tasks()][:2] == [0, 1]
    assert machine.problems


def test_wild_list_of_threads_costs_only_the_threads():
    machine = Machine()
    machine.memory.put(machine.leaders[1] + 104, 0x1234)
    assert [t.pid for t in machine.tasks()] == [0, 1, 7]
    assert machine.problems


def test_page_that_is_not_in_the_dump_costs_only_its_task():
    machine = Machine()
    machine.memory.put(FIRST + 0x8000 + 0x100 + 16, machine.leaders[1] + 64)
    machine.memory.put(machine.leaders[1] + 64, 0xFFFF888000F00000 + 64)
    machine.memory.put(FIRST + 0x8000 + 0x100 + 16, 0xFFFF888000F00000 + 64)
    assert [t.pid for t in machine.tasks()] == [0, 1, 7, 8]
    assert any("0xffff888000f00000" in p for p in machine.problems)


def test_impossible_pid_is_no_task():
    machine = Machine()
    machine.memory.put(machine.leaders[0] + 48, 1 << 30, 4)
    assert [t.pid for t in machine.tasks()] == [0, 7, 8]
    assert "its pid would be" in machine.problems[0]


def test_list_longer_than_its_limit_is_cut():
    memory, problems = Memory(), []
    nodes = [FIRST + 16 * n for n in range(1, 100)]
    memory.put_list(FIRST, nodes)
    assert list(walk_list(memory.space, FIRST, 10, problems, "list")) == nodes[:10]
    assert problems == ["list: more than 10 entries, the rest is left out"]


WILD = 0x1234_0000


@pytest.mark.parametrize("word", [4, 8])
@pytest.mark.parametrize("at", [0, 1, 5, 8])
@pytest.mark.parametrize(("to", "damage"), [(WILD, "cut after"), (FIRST + 160, "runs in a circle")])
def test_what_lies_behind_a_cut_is_found_from_the_lists_end(word, at, to, damage):
    memory, problems = Memory(word=word), []
    first = FIRST & (1 << 8 * word) - 1
    to = to & (1 << 8 * word) - 1
    nodes = [first + 16 * n for n in range(1, 11)]
    memory.put_list(first, nodes)
    memory.put(nodes[at], to if to == WILD else nodes[0])
    found = [node for node in walk_list(memory.space, first, 100, problems, "list") if node != WILD]
    assert found == nodes
    assert damage in problems[0]
    assert f"{9 - at} more are found from its end" in problems[0]


def test_pointers_back_that_lead_elsewhere_are_not_followed():
    memory, problems = Memory(), []
    nodes = [FIRST + 16 * n for n in range(1, 11)]
    memory.put_list(FIRST, nodes)
    memory.put(nodes[3], WILD)
    elsewhere = FIRST + 0x1000
    memory.put_list(elsewhere, [elsewhere + 16])
    memory.put(nodes[7] + 8, elsewhere)
    found = [node for node in walk_list(memory.space, FIRST, 100, problems, "list") if node != WILD]
    assert found == [*nodes[:4], *nodes[7:]]
    memory.put(FIRST + 8, elsewhere)
    assert [n for n in walk_list(memory.space, FIRST, 100, [], "list") if n != WILD] == nodes[:4]


def test_end_of_a_cut_list_has_the_same_limit():
    memory, problems = Memory(), []
    nodes = [FIRST + 16 * n for n in range(1, 100)]
    memory.put_list(FIRST, nodes)
    memory.put(nodes[2], WILD)
    assert len(list(walk_list(memory.space, FIRST, 10, problems, "list"))) <= 11


def test_saved_frame_gives_the_registers():
    machine = Machine()
    sp = FIRST + 0xA000
    for number, value in enumerate((15, 14, 13, 12, 3, 5, 0xFFFFFFFF81000010)):
        machine.memory.put(sp + 8 * number, value)
    machine.memory.put(machine.leaders[0] + 112, sp)
    task = machine.tasks()[1]
    assert saved_registers(machine.reader, task, "x86_64") == {
        "r15": 15, "r14": 14, "r13": 13, "r12": 12, "rbx": 3, "rbp": 5, "rip": 0xFFFFFFFF81000010, "rsp": sp + 56,
    }  # fmt: skip


def test_registers_of_other_machines_are_an_error():
    machine = Machine()
    with pytest.raises(DumpfsError, match="does not know"):
        saved_registers(machine.reader, machine.tasks()[1], "s390x")


@pytest.mark.parametrize(
    ("state", "exit_state", "letter"),
    [(0, 0, "R"), (1, 0, "S"), (2, 0, "D"), (4, 0, "T"), (8, 0, "t"), (0, 0x10, "X"), (0x80, 0x20, "Z"), (0x40, 0, "P"),
     (0x402, 0, "I"), (0x2001, 0, "S"), (0x8000, 0, "D"), (0x102, 0, "D"), (0xFFFFFFFF, 0, "I")],
)  # fmt: skip
def test_state_has_the_letter_of_proc(state, exit_state, letter):
    assert state_letter(state, exit_state) == letter
