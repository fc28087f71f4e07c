"""The layer rule: a module imports only from its own row and from rows below.

The rows, from bottom to top:

1. errors units structs ranges bitmap
2. native sources codecs notes vmcoreinfo elf/structs
3. formats memory/cache memory/physical
4. memory/virtual arch linux
5. elf/layout vfs writer (plan, filters, sinks); vfs and writer do not know each other
6. fuse writer/pipeline
7. cli
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dumpfs

PACKAGE = Path(dumpfs.__file__).parent
ROWS = {
    "dumpfs": 1,
    "dumpfs.errors": 1,
    "dumpfs.units": 1,
    "dumpfs.structs": 1,
    "dumpfs.ranges": 1,
    "dumpfs.bitmap": 1,
    "dumpfs.sources": 2,
    "dumpfs.native": 2,
    "dumpfs.codecs": 2,
    "dumpfs.notes": 2,
    "dumpfs.vmcoreinfo": 2,
    "dumpfs.elf.structs": 2,
    "dumpfs.formats": 3,
    "dumpfs.memory": 3,
    "dumpfs.memory.virtual": 4,
    "dumpfs.arch": 4,
    "dumpfs.linux": 4,
    "dumpfs.elf": 5,
    "dumpfs.vfs": 5,
    "dumpfs.writer": 5,
    "dumpfs.fuse": 6,
    "dumpfs.writer.pipeline": 6,
    "dumpfs.cli": 7,
}
"""Row of a module or of everything in a package; the longest name that fits counts."""

STRANGERS = [("dumpfs.vfs", "dumpfs.writer"), ("dumpfs.formats", "dumpfs.memory")]
"""Packages of which neither may know the other (formats below memory: memory takes an image by its protocol)."""

THIRD_PARTY = {
    "deflate": ["dumpfs.codecs.zlib"],
    "lzo": ["dumpfs.codecs.lzo"],
    "lzallright": ["dumpfs.codecs.lzo"],
    "cramjam": ["dumpfs.codecs.snappy", "dumpfs.codecs.packers"],
    "zstandard": ["dumpfs.codecs.zstd"],
    "fsspec": ["dumpfs.sources.remote"],
    "elftools": ["dumpfs.memory.virtual", "dumpfs.arch", "dumpfs.linux"],
    "numpy": [
        "dumpfs.linux.pageclass",
        "dumpfs.elf.framerows",
        "dumpfs.elf.kernelfile",
        "dumpfs.elf.orcframes",
        "dumpfs.elf.symbolfile",
        "dumpfs.writer",
    ],
    "pyfuse3": ["dumpfs.fuse"],
    "trio": [],
    "rich": ["dumpfs.cli.progress"],
}
"""Which modules or packages may import it; the mount's own path stays free of numpy, which takes 0.15 s to load:
what builds files imports it in a helper process."""

MAX_LINES = 400


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ["dumpfs", *path.relative_to(PACKAGE).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def row(name: str) -> int:
    fitting = [package for package in ROWS if within(name, package)]
    return ROWS[max(fitting, key=len)]


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Names that a file imports, with line numbers; strings that name one of our modules count (tables hold such)."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield (whole if whole in MODULES else node.module), node.lineno
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and node.value in MODULES
            and node.value != "dumpfs"  # also the name of the program, the logger and the file system
        ):
            yield node.value, node.lineno


each_module = pytest.mark.parametrize("name", MODULES)


def test_every_module_has_a_row():
    for name in MODULES:
        assert row(name) > 1 or name in ROWS, f"{name} is not in the table of rows"


@each_module
def test_imports_go_downward(name):
    for target, line in imports(MODULES[name]):
        if within(target, "dumpfs"):
            assert row(target) <= row(name), f"{name}:{line} imports {target}, which is above it"


@each_module
def test_packages_that_must_not_know_each_other(name):
    for one, other in STRANGERS:
        for target, line in imports(MODULES[name]):
            assert not (within(name, one) and within(target, other)), f"{name}:{line} imports {target}"
            if one == "dumpfs.vfs":
                assert not (within(name, other) and within(target, one)), f"{name}:{line} imports {target}"


@each_module
def test_third_party_packages_stay_in_their_modules(name):
    for target, line in imports(MODULES[name]):
        top = target.split(".")[0]
        if top == "dumpfs" or top in sys.stdlib_module_names:
            continue
        allowed = THIRD_PARTY.get(top, [])
        assert any(within(name, place) for place in allowed), f"{name}:{line} imports {top}"


@each_module
def test_private_names_are_not_imported(name):
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.ImportFrom) and within(node.module or "", "dumpfs"):
            private = [alias.name for alias in node.names if alias.name.startswith("_") and alias.name[:2] != "__"]
            assert not private, f"{name}:{node.lineno} imports {private} of {node.module}"


@each_module
def test_only_the_command_line_prints_and_exits(name):
    if within(name, "dumpfs.cli"):
        return
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("print", "input", "exit", "sys.exit", "sys.stdout.write"), f"{name}:{node.lineno}"
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) != "sys.argv", f"{name}:{node.lineno}"


@each_module
def test_nothing_is_caught_without_a_class(name):
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        assert not isinstance(node, ast.ExceptHandler) or node.type is not None, f"{name}:{node.lineno}"


@each_module
def test_modules_stay_short(name):
    lines = len(MODULES[name].read_text().splitlines())
    assert lines <= MAX_LINES, f"{name} has {lines} lines"


@each_module
def test_modules_say_what_they_are(name):
    assert ast.get_docstring(ast.parse(MODULES[name].read_text())), f"{name} has no docstring"


def test_no_module_is_a_drawer():
    drawers = {"utils", "util", "misc", "common", "helpers"}
    assert [name for name in MODULES if name.split(".")[-1] in drawers and name != "dumpfs.cli.common"] == []


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["mount", "--help"]], ids=" ".join)
def test_help_loads_neither_fuse_nor_codecs_nor_numpy(arguments):
    program = "import sys; from dumpfs.cli.main import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", program, *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    loaded = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert not loaded & {"pyfuse3", "trio", "numpy", "deflate", "lzo", "lzallright", "cramjam", "zstandard", "elftools"}


def test_opening_an_image_loads_no_fuse_and_no_numpy():
    program = "import dumpfs.formats, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not loaded & {"pyfuse3", "trio", "numpy"}


def loaded_by(program: str) -> set[str]:
    """Modules that a program has loaded in the end."""
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(done.stdout.split())


def test_what_serves_a_mount_loads_neither_trio_nor_the_metadata_of_packages():
    loaded = loaded_by(
        "import sys; from dumpfs.fuse.binding import load_pyfuse3; load_pyfuse3(); import dumpfs.fuse.session"
    )
    assert "pyfuse3" in loaded
    assert not loaded & {"trio", "asyncio", "ssl", "hashlib", "email", "importlib.metadata", "numpy", "subprocess"}


def test_stand_ins_for_what_pyfuse3_imports_are_gone_afterwards():
    loaded_by(
        "import sys; from dumpfs.fuse.binding import load_pyfuse3; load_pyfuse3()\n"
        "import trio, importlib.metadata\n"
        "assert trio.run and importlib.metadata.version('pyfuse3')"
    )


def test_a_trio_that_is_loaded_already_stays():
    loaded_by(
        "import sys, trio; from dumpfs.fuse.binding import load_pyfuse3; load_pyfuse3()\n"
        "assert sys.modules['trio'] is trio"
    )


def test_unmounting_loads_little():
    loaded = loaded_by("import sys; sys.argv[0] = 'dumpfs'; import dumpfs.cli.main as m; m.verb_parser('umount')")
    assert not loaded & {"dataclasses", "inspect", "shutil", "subprocess", "logging", "ctypes", "pyfuse3", "dumpfs.vfs"}


def test_directories_of_the_root_are_counted_without_what_looks_into_a_kernel():
    loaded = loaded_by("import sys, dumpfs.vfs.views.tasks, dumpfs.vfs.views.cpus, dumpfs.vfs.views.pages")
    assert not {name for name in loaded if name.startswith("dumpfs.linux.")}
