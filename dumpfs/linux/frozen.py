"""What an `Inspector` found out, as bytes for other processes.

Symbols, types, tasks and unwind tables take some tenths of a second to read and a few milliseconds to hand on. The
bytes are for processes of the same program on the same machine: they were made by us and are not checked again.

    length of the header | header (JSON) | parts, one behind the other
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple
from itertools import islice
from typing import Any

from dumpfs.errors import DumpfsError, ViewError
from dumpfs.linux.btf import Btf
from dumpfs.linux.inspect import Inspector
from dumpfs.linux.kallsyms import Kallsyms
from dumpfs.linux.modules import Module
from dumpfs.linux.orc import OrcTable
from dumpfs.linux.tasks import Task
from dumpfs.linux.types import Member, Types

_LOG = logging.getLogger("dumpfs")

_HEAD = 8


def freeze(
    inspector: Inspector,
    warm: Callable[[Inspector], None] | None = None,
    find_absent: Callable[[], Mapping[str, str]] = dict,
) -> bytes:
    """Find out everything that views need, and pack it.

    What cannot be found out is packed as the reason why.

    Args:
        inspector: of the kernel.
        warm: asks for whatever else is likely to be wanted, so that answers about types are known.
        find_absent: names what cannot be offered, with the reasons.
    """
    header: dict[str, Any] = {}
    parts: list[bytes] = []

    def put(name: str, find: Callable[[], tuple[Any, Sequence[bytes]]]) -> None:
        try:
            value, pieces = find()
        except DumpfsError as exc:
            header[name] = {"error": exc.message, "hint": exc.hint}
        except Exception as exc:  # noqa: BLE001 (a mistake of ours must not cost what can be found out otherwise)
            _LOG.exception("unexpected error while finding the kernel's %s", name)
            header[name] = {"error": f"{name}: unexpected {type(exc).__name__}; the log tells more", "hint": None}
        else:
            header[name] = {"value": value, "sizes": [len(piece) for piece in pieces]}
            parts.extend(pieces)

    put("kallsyms", lambda: (inspector.kallsyms.origin, inspector.kallsyms.freeze()))
    put("tasks", lambda: ([astuple(task) for task in inspector.tasks], ()))
    put("modules", lambda: ([astuple(module) for module in inspector.modules], ()))
    put("cpus", lambda: (inspector.cpus, ()))
    put("banner", lambda: (None, (inspector.banner,)))
    header["absent"] = dict(find_absent())
    if warm is not None:
        try:
            warm(inspector)
        except Exception:  # noqa: BLE001 (likewise: nothing but time is lost)
            _LOG.exception("unexpected error while preparing texts of tasks")
    put("types", lambda: _freeze_types(inspector.types))
    if inspector.kernel.machine == "x86_64":
        put("orc", lambda: (None, _freeze_orc(inspector)))
    info = inspector.kernel.vmcoreinfo
    header["vmcoreinfo"] = None if info is None else info.raw.decode("latin-1")
    header["problems"] = inspector.problems
    header["kernel"] = inspector.kernel.problems
    text = json.dumps(header).encode()
    return b"".join((len(text).to_bytes(_HEAD, "little"), text, *parts))


def _freeze_types(types: Types) -> tuple[Any, Sequence[bytes]]:
    known = [[struct, path, member] for (struct, path), member in types.known.items()]
    pieces = types.info.freeze() if isinstance(types.info, Btf) else ()
    return {"origin": types.origin, "known": known, "sizes": types.sizes}, pieces


def _freeze_orc(inspector: Inspector) -> Sequence[bytes]:
    table = inspector.code.kernel_orc
    if table is None:
        raise ViewError("the kernel has no ORC tables")
    return table.freeze()


def frozen_kernel_problems(data: bytes | memoryview) -> tuple[str, ...]:
    """`Kernel.problems` of the kernel that was found out about."""
    return tuple(_header(data)[0]["kernel"])


def frozen_vmcoreinfo(data: bytes | memoryview) -> bytes | None:
    """VMCOREINFO of the kernel that was found out about, which may have taken a search; None without."""
    text = _header(data)[0]["vmcoreinfo"]
    return None if text is None else text.encode("latin-1")


def frozen_absent(data: bytes | memoryview) -> Mapping[str, str]:
    """What cannot be offered, with the reasons."""
    absent: dict[str, str] = _header(data)[0]["absent"]
    return absent


def thaw(inspector: Inspector, data: bytes | memoryview) -> None:
    """Let `inspector` know what another one packed by `freeze`."""
    header, position = _header(data)

    def take(sizes: Sequence[int]) -> Iterator[bytes]:
        nonlocal position
        for size in sizes:
            yield bytes(data[position : position + size])
            position += size

    makers: dict[str, Callable[[Any, Sequence[bytes]], object]] = {
        "kallsyms": Kallsyms.thaw,
        "tasks": lambda rows, _: tuple(Task(*row) for row in rows),
        "modules": lambda rows, _: tuple(_thaw_module(row) for row in rows),
        "cpus": lambda numbers, _: tuple(numbers),
        "banner": lambda _, pieces: pieces[0],
        "types": lambda value, pieces: _thaw_types(inspector, value, pieces),
        "orc": lambda _, pieces: OrcTable.thaw(pieces),
    }
    for name, make in makers.items():
        entry = header.get(name)
        if entry is None:
            continue  # no such thing on this architecture
        if "error" in entry:
            inspector.know(name, ViewError(entry["error"], hint=entry["hint"]))
        else:
            pieces = list(take(entry["sizes"]))
            inspector.know(name, make(entry["value"], pieces))
    inspector.problems[:] = header["problems"]


def _thaw_module(row: list[Any]) -> Module:
    *plain, users, taints, ranges = row
    values = (*plain, tuple(users), taints, tuple((start, size) for start, size in ranges))
    return Module(*values)


def _thaw_types(inspector: Inspector, value: dict[str, Any], pieces: Sequence[bytes]) -> Types:
    if pieces:
        types = Types(Btf.thaw(inspector.kernel.word_size, value["origin"], pieces))
    else:
        types = inspector.debug_types()
    types.sizes.update(value["sizes"])
    for struct, path, member in value["known"]:
        types.known[struct, path] = None if member is None else Member(*member)
    return types


def _header(data: bytes | memoryview) -> tuple[dict[str, Any], int]:
    stop = _HEAD + int.from_bytes(data[:_HEAD], "little")
    return json.loads(bytes(data[_HEAD:stop])), stop


def some_tasks(inspector: Inspector, count: int = 8) -> list[Task]:
    """A few tasks of different kinds, for warming up: running ones, then user and kernel ones."""
    tasks = sorted(inspector.tasks, key=lambda task: (not task.running, not task.mm))
    return list(islice(tasks, count // 2)) + tasks[-(count - count // 2) :]
