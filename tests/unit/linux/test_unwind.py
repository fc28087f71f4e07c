"""Walking stacks: every kind of frame, and stacks that lead nowhere."""

from __future__ import annotations

import pytest

from dumpfs.linux.frames import MAX_FRAMES, Frame
from dumpfs.linux.kallsyms import Symbol
from dumpfs.linux.orc import OrcEntry, OrcReg, OrcType
from dumpfs.linux.unwind import StackReader, describe, in_user_mode
from tests.unit.linux.kernelmem import Memory, make_types

TEXT = 0xFFFFFFFF81000000
STACK, SIZE = 0xFFFFC90000010000, 0x4000
NAMES = ("idle", "schedule", "worker", "thread", "entry", "lost")
FUNCTION = 0x100
CALL = OrcEntry(24, -16, OrcReg.SP, OrcReg.PREV_SP, OrcType.CALL, False)
END = OrcEntry(0, 0, OrcReg.UNDEFINED, OrcReg.UNDEFINED, OrcType.END_OF_STACK, False)
LOST = OrcEntry(0, 0, OrcReg.UNDEFINED, OrcReg.UNDEFINED, OrcType.CALL, False)
REGS = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8"),
    *("rax", "rcx", "rdx", "rsi", "rdi", "orig_rax", "rip", "cs", "eflags", "rsp", "ss"),
)


class Code:
    """Functions of 256 bytes each."""

    def __init__(self, **entries: OrcEntry) -> None:
        self.entries = entries

    def lookup(self, vaddr: int) -> Symbol | None:
        number, offset = divmod(vaddr - TEXT, FUNCTION)
        return Symbol(NAMES[number], offset, FUNCTION) if 0 <= number < len(NAMES) else None

    def is_text(self, vaddr: int) -> bool:
        return self.lookup(vaddr) is not None

    def find_orc(self, vaddr: int) -> OrcEntry | None:
        symbol = self.lookup(vaddr)
        return None if symbol is None else self.entries.get(symbol.name, CALL)


def pc(name: str, offset: int = 0x20) -> int:
    return TEXT + FUNCTION * NAMES.index(name) + offset


def walk(
    memory: Memory, registers: dict[str, int], *, orc=True, running=False, machine="x86_64", types=None, **entries
):
    reader = StackReader(memory.space, types, Code(**entries), machine, orc, 0xFFFF << 48)
    stack = reader.walk(registers, (STACK, SIZE), running=running)
    return reader, stack


def names(stack) -> list[str]:
    code = Code()
    return [
        ("? " if f.guessed else "") + (s.name if (s := code.lookup(f.lookup_pc)) else hex(f.pc)) for f in stack.frames
    ]


def start(name: str = "schedule", sp: int = STACK + 0x1000, bp: int = 0) -> dict[str, int]:
    return {"rip": pc(name), "rsp": sp, "rbp": bp}


def call_chain(memory: Memory, sp: int, *callers: str) -> int:
    """Frames of CALL entries: two saved words and a return address each; the stack pointer behind them."""
    memory.write(STACK, bytes(SIZE))
    for name in callers:
        memory.put(sp + 16, pc(name))
        sp += 24
    return sp


def test_calls_are_followed_to_the_end():
    memory = Memory()
    call_chain(memory, STACK + 0x1000, "worker", "thread", "entry")
    _, stack = walk(memory, start(), entry=END)
    assert names(stack) == ["schedule", "worker", "thread", "entry"]
    assert (stack.unwinder, stack.end) == ("ORC", "")


def test_saved_frame_pointer_leads_on():
    memory = Memory()
    memory.write(STACK, bytes(SIZE))
    memory.put(STACK + 0x1008, STACK + 0x2000)  # where CALL finds the caller's %rbp
    memory.put(STACK + 0x1010, pc("worker"))
    memory.put(STACK + 0x2008, pc("entry"))
    by_bp = OrcEntry(16, -16, OrcReg.BP, OrcReg.PREV_SP, OrcType.CALL, False)
    _, stack = walk(memory, start(), worker=by_bp, entry=END)
    assert names(stack) == ["schedule", "worker", "entry"]
    assert stack.frames[-1].sp == STACK + 0x2010


def put_regs(memory: Memory, vaddr: int, **values: int) -> None:
    for number, name in enumerate(REGS):
        memory.put(vaddr + 8 * number, values.get(name, 0))


def test_interrupted_frame_goes_on_where_it_was():
    memory = Memory()
    sp = call_chain(memory, STACK + 0x1000, "entry")
    put_regs(memory, sp, rip=TEXT + FUNCTION, cs=0x10, rsp=STACK + 0x3000, rbp=5, r13=7)
    memory.put(STACK + 0x3010, pc("thread"))
    regs = OrcEntry(0, 0, OrcReg.SP, OrcReg.UNDEFINED, OrcType.REGS, True)
    _, stack = walk(memory, start("idle"), entry=regs, thread=END)
    assert names(stack) == ["idle", "entry", "schedule", "thread"]
    assert stack.frames[2].exact
    assert stack.frames[2].registers["r13"] == 7


@pytest.mark.parametrize("kind", [OrcType.REGS, OrcType.REGS_PARTIAL])
def test_stack_ends_at_user_mode(kind):
    memory = Memory()
    sp = call_chain(memory, STACK + 0x1000, "entry")
    put_regs(memory, sp, rip=0x401000, cs=0x33, rsp=0x7FFE00000000)
    memory.put(sp + 8, 0x33)
    _, stack = walk(memory, start(), entry=OrcEntry(0, 0, OrcReg.SP, OrcReg.UNDEFINED, kind, True))
    assert names(stack) == ["schedule", "entry"]
    assert not stack.end


def test_interrupt_stack_is_left_by_the_saved_pointer():
    memory = Memory()
    memory.write(STACK, bytes(SIZE))
    memory.put(STACK + 0x1000, STACK + 0x3000)
    memory.put(STACK + 0x2FF8, pc("entry"))
    indirect = OrcEntry(0, 0, OrcReg.SP_INDIRECT, OrcReg.UNDEFINED, OrcType.CALL, False)
    _, stack = walk(memory, start(), schedule=indirect, entry=END)
    assert names(stack) == ["schedule", "entry"]


def test_function_without_entries_is_left_by_the_call_that_entered_it():
    memory = Memory()
    memory.write(STACK, bytes(SIZE))
    memory.write(TEXT, bytes(0x1000))
    for place, name in ((0x1100, "thread"), (0x1200, "worker")):
        memory.put(STACK + place, pc(name))
    memory.write(pc("worker") - 5, b"\xe8" + (pc("schedule", 0) - pc("worker")).to_bytes(4, "little", signed=True))
    memory.put(STACK + 0x1208 + 16, pc("entry"))
    _, stack = walk(memory, start(), schedule=LOST, entry=END)
    assert names(stack) == ["schedule", "worker", "entry"]


def test_lost_walk_searches_the_stack_and_marks_what_it_finds():
    memory = Memory()
    memory.write(STACK, bytes(SIZE))
    memory.write(TEXT, bytes(0x1000))
    memory.put(STACK + 0x1100, pc("thread"))
    memory.put(STACK + 0x1200, pc("worker"))
    memory.write(pc("worker") - 2, b"\xff\xd0")  # call *%rax
    _, stack = walk(memory, start(), schedule=LOST)
    assert names(stack) == ["schedule", "? worker"]
    assert stack.unwinder == "return addresses"
    assert "no way on" in stack.end


def test_frame_pointers_are_followed_without_tables():
    memory = Memory()
    memory.write(STACK, bytes(SIZE))
    for here, there, name in ((0x1000, 0x1100, "worker"), (0x1100, 0x1200, "thread"), (0x1200, 0, "entry")):
        memory.put(STACK + here, STACK + there if there else 0)
        memory.put(STACK + here + 8, pc(name))
    _, stack = walk(memory, start(bp=STACK + 0x1000, sp=STACK + 0xF00), orc=False)
    assert names(stack) == ["schedule", "worker", "thread", "entry"]
    assert (stack.unwinder, stack.end) == ("frame pointers", "")


def test_marked_frame_pointer_is_an_interrupted_frame():
    memory = Memory()
    memory.write(STACK, bytes(SIZE))
    memory.put(STACK + 0x1000, STACK + 0x2000 | 1)
    memory.put(STACK + 0x1008, pc("worker"))
    put_regs(memory, STACK + 0x2000, rip=pc("thread"), cs=0x10, rsp=STACK + 0x3000)
    _, stack = walk(memory, start(bp=STACK + 0x1000, sp=STACK + 0xF00), orc=False)
    assert names(stack) == ["schedule", "worker", "thread"]
    assert stack.frames[-1].exact


def arm(name: str, fp: int) -> dict[str, int]:
    return {"pc": pc(name), "sp": fp, "x29": fp}


def test_arm64_records_are_followed_and_their_signatures_taken_off():
    memory = Memory()
    memory.write(STACK, bytes(SIZE))
    memory.put(STACK + 0x1000, STACK + 0x1100)
    memory.put(STACK + 0x1008, pc("worker") & ~(0x7F << 56))  # signed: bit 55 says kernel
    memory.put(STACK + 0x1100, STACK + 0x1200)
    memory.put(STACK + 0x1108, pc("thread"))
    _, stack = walk(memory, arm("schedule", STACK + 0x1000), machine="aarch64")
    assert names(stack) == ["schedule", "worker", "thread"]
    assert (stack.unwinder, stack.end) == ("frame pointers", "")


@pytest.mark.parametrize(("pstate", "expected"), [(5, ["schedule", "worker", "thread"]), (0, ["schedule", "worker"])])
def test_arm64_exception_record_leads_behind_the_exception(pstate, expected):
    types = make_types(
        {
            "frame_record_meta": (24, {"record": (0, 16), "type": (16, 8)}),
            "pt_regs": (320, {"regs": (0, 248), "pc": (256, 8), "sp": (248, 8), "pstate": (264, 8),
                              "stackframe": (296, 24)}),
        }
    )  # fmt: skip
    types.known["pt_regs", "regs[29]"] = types.member("pt_regs", "pc")._replace(offset=232)
    memory = Memory()
    memory.write(STACK, bytes(SIZE))
    record = STACK + 0x1100
    memory.put(STACK + 0x1000, record)
    memory.put(STACK + 0x1008, pc("worker"))
    memory.put(record + 16, 2)
    for offset, value in ((256, pc("thread")), (248, STACK + 0x2000), (264, pstate), (232, 0)):
        memory.put(record - 296 + offset, value)
    _, stack = walk(memory, arm("schedule", STACK + 0x1000), machine="aarch64", types=types)
    assert names(stack) == expected
    assert not stack.end


@pytest.mark.parametrize("orc", [True, False])
def test_walk_that_stands_still_ends(orc):
    memory = Memory()
    memory.write(STACK, bytes(SIZE))
    memory.put(STACK + 0x1000, STACK + 0x1000)
    memory.put(STACK + 0x1008, pc("schedule"))
    circle = OrcEntry(0, 0, OrcReg.BP, OrcReg.UNDEFINED, OrcType.CALL, False)
    memory.put(STACK + 0xFF8, pc("schedule"))
    _, stack = walk(memory, start(bp=STACK + 0x1000), orc=orc, schedule=circle)
    assert ("stands still" if orc else "below the stack pointer") in stack.end


def test_endless_walk_is_cut():
    memory = Memory()
    for page in range(0, 0x20000, 0x1000):
        memory.write(STACK + page, pc("worker").to_bytes(8, "little") * 512)
    _, stack = walk(memory, start())
    assert len(stack.frames) <= MAX_FRAMES
    assert "more than" in stack.end


def test_running_user_program_has_no_kernel_stack():
    memory = Memory()
    registers = {"rip": 0x401000, "rsp": 0x7FFE00000000, "rbp": 0, "cs": 0x33}
    _, stack = walk(memory, registers, running=True)
    assert stack.frames == ()
    assert not stack.end


def test_unknown_machine_is_told():
    _, stack = walk(Memory(), {}, machine="m68k")
    assert "m68k" in stack.end


@pytest.mark.parametrize(
    ("registers", "user"), [({"cs": 0x33}, True), ({"cs": 0x10}, False), ({"pstate": 0}, True), ({"pstate": 5}, False)]
)
def test_user_mode_is_told_by_the_registers(registers, user):
    assert in_user_mode(registers) is user


def test_return_address_at_the_end_of_a_function_is_its():
    lookup = Code().lookup
    assert describe(Frame(pc("worker", 0), 0), lookup) == "schedule+0x100/0x100"
    assert describe(Frame(pc("worker", 0), 0, exact=True), lookup) == "worker+0x0/0x100"
    assert describe(Frame(0x1234, 0), lookup) == "0x1234"
