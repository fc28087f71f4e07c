"""/gdbinit and its companions: what they say, and that nothing in a dump can make the script do anything else."""

from __future__ import annotations

import ast
import dataclasses
import json
import re

import pytest

from dumpfs.arch.x86_64 import page_tables
from dumpfs.errors import ViewError
from dumpfs.linux.inspect import Inspector
from dumpfs.vfs.context import Dump
from dumpfs.vfs.views.gdbinit import collect_facts, collect_modules, render_gdbinit
from dumpfs.vfs.views.vmcore_tasks import find_threads


@pytest.fixture(scope="module")
def dump(data):
    with Dump.open([str(data("mkd-raw-d31.kdump"))]) as dump:
        yield dump


@pytest.fixture
def inspector(dump):
    """One that may be changed."""
    return Inspector(dump.inspection.inspector.kernel)


def read(dump: Dump, path: str) -> bytes:
    node = dump.tree.lookup_path(path)
    return node.read(0, node.size() + 1)


def facts_of(text: str) -> dict:
    (call,) = re.findall(r"^DUMPFS_FACTS = json\.loads\((.*)\)$", text, re.MULTILINE)
    return json.loads(ast.literal_eval(call))


def python_part(text: str) -> str:
    return text.partition("\npython\n")[2].rpartition("\nend\n")[0]


def test_script_holds_the_facts(dump):
    facts = facts_of(read(dump, "gdbinit").decode())
    assert facts["build_id"] == dump.kernel.build_id
    assert facts["architecture"] == "i386:x86-64"
    assert facts["landmarks"][0] == ["_stext", 0xFFFFFFFF81000000]
    assert [2, "kthreadd", "S", 1] in facts["tasks"]


def test_python_part_is_python(dump):
    ast.parse(python_part(read(dump, "gdbinit").decode()))


def test_python_part_has_no_line_that_would_end_it(dump):
    assert not re.search(r"^\s*end\s*$", python_part(read(dump, "gdbinit").decode()), re.MULTILINE)


def test_no_placeholder_is_left(dump):
    assert not re.search(r"@[A-Z]+@", read(dump, "gdbinit").decode())


def test_panic_thread_is_the_one_of_the_processor_that_panicked(dump):
    assert collect_facts(dump.inspection.inspector)["panic_thread"] == 1


def test_threads_are_numbered_as_in_vmcore_tasks(dump):
    notes = find_threads(dump)
    told = {row[0] for row in collect_facts(dump.inspection.inspector)["tasks"]}
    asleep = {int.from_bytes(notes.data[i + 20 + 32 : i + 20 + 36], "little") for i in range(0, len(notes.data), 356)}
    assert set(notes.cpu_pids) | asleep == told


@pytest.mark.parametrize("comm", ["@COMMANDS@", "end\nquit", "'''\n", '"); quit(', "\\", "\udcff", "{}"])
def test_names_of_tasks_cannot_leave_their_string(inspector, comm):
    task = dataclasses.replace(inspector.tasks[0], comm=comm)
    inspector.know("tasks", (task,))
    text = render_gdbinit(inspector).decode()
    assert facts_of(text)["tasks"][0][1] == comm
    ast.parse(python_part(text))


def test_release_cannot_leave_its_comment(inspector):
    kernel = inspector.kernel
    hostile = dataclasses.replace(kernel, vmcoreinfo=None, image=kernel.image)
    hostile.__dict__["uts"] = dataclasses.replace(kernel.uts, release="6.1\nshell touch /tmp/x\n@FACTS@")
    text = render_gdbinit(Inspector(hostile)).decode()
    assert not any(line.startswith("shell") for line in text.splitlines())
    assert text.count("DUMPFS_FACTS = ") == 1


def test_script_is_offered_where_the_tasks_are_not_known(inspector):
    inspector.know("tasks", ViewError("its structures are unknown"))
    facts = facts_of(render_gdbinit(inspector).decode())
    assert (facts["tasks"], facts["panic_thread"]) == ([], None)
    assert facts["landmarks"]


def test_modules_have_sections_and_build_ids(dump):
    ((name, base, size, build_id, sections),) = json.loads(read(dump, "gdb/modules.json"))
    assert (name, base, size) == ("loop", 0xFFFFFFFFC0000000, 32768)
    assert re.fullmatch("[0-9a-f]{40}", build_id)
    assert dict(sections)[".text"] == base


def test_a_modules_per_cpu_variables_have_their_section(corpus):
    with Dump.open([str(corpus("deb61/raw-d31.kdump"))]) as dump:
        modules = {row[0]: dict(row[4]) for row in collect_modules(dump.inspection.inspector)}
        per_cpu = {name: found for name, s in modules.items() if (found := s.get(".data..percpu")) is not None}
        assert per_cpu == {"zsmalloc": 0x34000}
        assert b"0000000000034000 a zs_map_area\t[zsmalloc]\n" in read(dump, "kallsyms")


def test_the_readme_warns_of_the_script_that_would_undo_ours(dump):
    readme = " ".join(read(dump, "README").decode().split())
    assert "scripts for gdb work with it, but for lx-symbols" in readme
    assert "use `dumpfs modules DIRECTORY`" in readme


def test_without_modules_there_is_an_empty_list(inspector):
    inspector.know("modules", ViewError("the kernel has no symbol modules"))
    assert collect_modules(inspector) == []


def test_page_tables_are_described_as_they_are_walked(dump):
    root, first, order, levels = collect_facts(dump.inspection.inspector)["page_tables"]
    tables = page_tables(dump.inspection.inspector.kernel.phys, root, 4)
    assert [list(level) for level in tables.levels] == levels
    assert (tables.first, tables.byteorder) == (first, order)


def test_extra_symbols_lack_the_kernels_own(dump):
    whole, extra = read(dump, "vmlinux"), read(dump, "gdb/extra.symbols")
    assert b"\0schedule\0" in whole
    assert b"\0schedule\0" not in extra
    for data in (whole, extra):
        assert b"\0lo_ioctl\0" in data
        assert b"\0<user mode>\0" in data


def test_script_is_prepared_by_itself_and_taken_by_others(dump):
    with Dump.open(dump.paths) as other:
        node = other.tree.at("gdbinit")
        assert not node.ready
        assert node.prepared_by() is node
        node.adopt(dump.tree.at("gdbinit").build())
        assert node.ready
        assert read(other, "gdbinit") == read(dump, "gdbinit")
        assert not other.inspection.ready


def test_script_waits_for_what_all_views_need_where_memory_must_be_searched(corpus):
    with Dump.open([str(corpus("tiny/qemu-kaslr-novmci.kdump-zlib"))]) as dump:
        assert dump.tree.at("gdbinit").prepared_by() is dump.tree.at("tasks")


def test_script_tells_what_gdb_will_want_next(dump):
    node, at = dump.tree.at("gdbinit"), dump.tree.at
    assert node.wanted_next() == [at("vmcore-tasks")]
    assert node.wanted_perhaps() == [at("gdb/extra.symbols"), at("vmlinux")]
