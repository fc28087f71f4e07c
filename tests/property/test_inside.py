"""A damaged kernel: whatever is wrong inside it, answers come, are partial or say why, and nothing hangs."""

from __future__ import annotations

import functools
import os
import random
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dumpfs.errors import DumpfsError
from dumpfs.formats import open_image
from dumpfs.linux import procfs
from dumpfs.linux.btf import Btf, Kind
from dumpfs.linux.frames import MAX_FRAMES
from dumpfs.linux.frozen import freeze
from dumpfs.linux.inspect import Inspector
from dumpfs.linux.kallsyms import render_kallsyms
from dumpfs.linux.kallsyms_scan import find_kallsyms
from dumpfs.linux.kernel import find_kernel
from dumpfs.linux.modules import module_symbols, render_modules
from dumpfs.linux.types import MissingTypeError
from dumpfs.linux.usermem import MapleTree
from dumpfs.memory.virtual import AddressSpace
from tests.build.btf import BtfBuilder
from tests.unit.linux.kernelmem import Memory
from tests.work import bounded_work

EXAMPLES = int(os.environ.get("DUMPFS_EXAMPLES", "6"))
"""Damages of each kind; every one costs half a second."""


@functools.cache
def intact(path: Path) -> Inspector:
    inspector = Inspector(find_kernel(open_image([str(path)])))
    procfs.warm_up(inspector)
    return inspector


class DamagedPhys:
    """Physical memory with some places overwritten."""

    def __init__(self, phys, patches: list[tuple[int, bytes]]) -> None:
        self._phys = phys
        self._patches = patches

    def __getattr__(self, name: str):
        return getattr(self._phys, name)

    def read(self, paddr: int, size: int) -> bytes:
        data = self._phys.read(paddr, size)
        for start, patch in self._patches:
            low, high = max(start, paddr), min(start + len(patch), paddr + size)
            if low < high:
                data = data[: low - paddr] + patch[low - start : high - start] + data[high - paddr :]
        return data


def damaged(inspector: Inspector, patches: list[tuple[int, bytes]]) -> Inspector:
    """The same kernel with (virtual address, bytes) written over its memory."""
    kernel, space = inspector.kernel, inspector.space
    places = []
    for vaddr, data in patches:
        try:
            places.append((space.translate(vaddr), data))
        except DumpfsError:
            continue
    phys = DamagedPhys(kernel.phys, places)
    fresh = AddressSpace(phys, space.byteorder, space.word_size, space.linear, space.tables)
    return Inspector(replace(kernel, space=fresh))


def ask_everything(inspector: Inspector) -> None:
    """Ask all that the views ask; only a `DumpfsError` may come of it."""
    freeze(inspector, procfs.warm_up)

    def symbols() -> str:
        texts = [render_kallsyms(inspector.kallsyms, 8), render_modules(inspector.modules, 8)]
        texts += [
            render_kallsyms(module_symbols(inspector.space, inspector.types, m), 8, m.name) for m in inspector.modules
        ]
        return "".join(texts)

    for ask in (symbols, inspector.read_config, inspector.read_btf, lambda: [inspector.prstatus(c) for c in range(3)]):
        with suppress(DumpfsError):
            ask()
    for notice in inspector.notices():
        assert notice


def places(inspector: Inspector) -> dict[str, tuple[int, int]]:
    """(address, bytes) of what a damage can hit."""
    info, symbols = inspector.kernel.vmcoreinfo, inspector.kallsyms
    tasks = inspector.tasks
    btf = symbols.need("__start_BTF")
    return {
        "names": (info.symbol("kallsyms_names"), 400_000),
        "num_syms": (info.symbol("kallsyms_num_syms"), 4),
        "tokens": (info.symbol("kallsyms_token_table"), 1400),
        "offsets": (info.symbol("kallsyms_offsets"), 140_000),
        "BTF header": (btf, 24),
        "BTF": (btf, symbols.need("__stop_BTF") - btf),
        "ORC places": (symbols.need("__start_orc_unwind_ip"), 100_000),
        "ORC entries": (symbols.need("__start_orc_unwind"), 150_000),
        "run queue": (inspector.percpu(symbols.need("runqueues"), 0), 3000),
        "per-CPU offsets": (symbols.need("__per_cpu_offset"), 16),
        "present mask": (symbols.need("__cpu_present_mask"), 8),
        "first task": (tasks[2].vaddr, 2500),
        "last task": (tasks[-1].vaddr, 2500),
        "stack": (tasks[2].stack, 0x4000),
        "module list": (symbols.need("modules"), 16),
        "module": (inspector.modules[0].vaddr, 900),
        "memory description": (next(t.mm for t in tasks if t.mm), 1000),
        "banner": (symbols.need("linux_banner"), 64),
    }


@st.composite
def damages(draw, where: tuple[int, int]) -> tuple[int, bytes]:
    start, size = where
    vaddr = start + draw(st.integers(0, size - 1)) // 4 * 4
    kind = draw(st.sampled_from(("bytes", "zeros", "ones", "pointer", "self", "block")))
    if kind == "bytes":
        return vaddr, draw(st.binary(min_size=1, max_size=16))
    if kind == "zeros":
        return vaddr, bytes(draw(st.sampled_from((4, 8, 64, 4096))))
    if kind == "ones":
        return vaddr, b"\xff" * draw(st.sampled_from((4, 8, 64, 4096)))
    if kind == "pointer":
        wild = draw(st.sampled_from((0, 8, 0xDEAD000000000100, 0xFFFF888000001000, 0xFFFFFFFF81000000, (1 << 64) - 8)))
        return vaddr // 8 * 8, wild.to_bytes(8, "little")
    if kind == "self":
        return vaddr // 8 * 8, (vaddr // 8 * 8).to_bytes(8, "little")
    return vaddr, random.Random(draw(st.integers(0, 1 << 32))).randbytes(2048)


TARGETS = (
    "names", "num_syms", "tokens", "offsets", "BTF header", "BTF", "ORC places", "ORC entries", "run queue",
    "per-CPU offsets", "present mask", "first task", "last task", "stack", "module list", "module",
    "memory description", "banner",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_damage_costs_no_more_than_what_it_hits(data, target):
    inspector = intact(data("mkd-raw-d31.kdump"))
    where = places(inspector)[target]

    @settings(max_examples=EXAMPLES)
    @given(patches=st.lists(damages(where), min_size=1, max_size=3))
    def check(patches) -> None:
        with bounded_work(4_000_000):  # measured: at most 380,000
            ask_everything(damaged(inspector, patches))

    check()


@given(blob=st.binary(max_size=400))
def test_any_bytes_as_types_are_read_or_refused(blob):
    builder = BtfBuilder()
    builder.types += blob[: len(blob) // 4 * 4]
    try:
        types = Btf(builder.build(), 8)
    except DumpfsError:
        return
    for type_id in range(len(types) + 2):
        types.type_size(type_id)
        list(types.members(type_id))
    types.enumerators("")


@given(data=st.data())
def test_types_that_refer_to_anything_end(data):
    builder = BtfBuilder()
    count = data.draw(st.integers(1, 12))
    anything = st.integers(0, count + 2)
    for number in range(count):
        kind = data.draw(st.sampled_from(("typedef", "array", "struct", "pointer")))
        if kind == "typedef":
            builder.typedef(f"t{number}", data.draw(anything))
        elif kind == "array":
            builder.array(data.draw(anything), data.draw(st.integers(0, 1 << 32 - 1)))
        elif kind == "pointer":
            builder.pointer(data.draw(anything))
        else:
            rows = data.draw(st.lists(st.tuples(st.sampled_from(("", "a")), anything, st.integers(0, 99)), max_size=5))
            builder.struct(f"s{number}", 8, rows)
    types = Btf(builder.build(), 8)
    for number in range(count):
        for name in (f"s{number}", f"t{number}"):
            try:
                types.member(name, "a.a[3].x")
            except MissingTypeError:
                pass
        types.type_size(types.find(f"t{number}", Kind.TYPEDEF))


@given(noise=st.binary(min_size=64, max_size=2000), place=st.integers(0, 3000))
def test_any_bytes_around_digits_hold_no_symbols(noise, place):
    memory = Memory()
    base = 0xFFFFFFFF81000000
    digits = b"".join(b"%d\0" % n for n in range(10))
    memory.write(base, bytes(0x4000))
    memory.write(base + place, noise + digits + noise)
    with pytest.raises(DumpfsError):
        find_kallsyms(memory.space, [(base, 0x4000)], None)


@given(seed=st.integers(0, 1 << 32), root=st.integers(0, 1 << 16))
def test_tree_of_noise_ends(data, seed, root):
    noise = random.Random(seed)
    inspector = intact(data("mkd-raw-d31.kdump"))
    memory = Memory()
    nodes = [0xFFFF888000000000 + 256 * n for n in range(16)]
    for node in nodes:
        words = [
            noise.choice((0, noise.randrange(1 << 64), noise.choice(nodes) | noise.choice((0x0C, 0x14, 0x1C)) | 2))
            for _ in range(32)
        ]
        memory.write(node, b"".join(word.to_bytes(8, "little") for word in words))
    fake = Inspector(replace(inspector.kernel, space=memory.space))
    fake.know("types", inspector.types)
    problems: list[str] = []
    with bounded_work(4_000_000):  # measured: at most 1,600
        tree = MapleTree(fake, problems)
        for count, _ in enumerate(tree.entries(nodes[root % 16] | 0x1E)):
            assert count < 1 << 20


@given(seed=st.integers(0, 1 << 32))
def test_stack_of_noise_ends(data, seed):
    noise = random.Random(seed)
    inspector = intact(data("mkd-raw-d31.kdump"))
    text = inspector.kallsyms.need("_stext")
    task = inspector.tasks[3]
    words = [
        noise.choice(
            (0, text + noise.randrange(1 << 22), task.stack + noise.randrange(0x4000), noise.randrange(1 << 64))
        )
        for _ in range(0x800)
    ]
    hurt = damaged(inspector, [])
    hurt.space.phys._patches.extend(
        (
            inspector.space.translate(task.stack + page),
            b"".join(w.to_bytes(8, "little") for w in words[page // 8 :][:512]),
        )
        for page in range(0, 0x4000, 4096)
    )
    for name in ("kallsyms", "types", "modules", "code"):
        hurt.know(name, getattr(inspector, name))
    for orc in (True, False):
        hurt.stack_reader.orc = orc
        registers = {"rip": text + 0x1234, "rsp": task.stack + noise.randrange(0x3000), "rbp": words[7]}
        stack = hurt.stack_reader.walk(registers, (task.stack, 0x4000), running=False)
        assert len(stack.frames) <= MAX_FRAMES
