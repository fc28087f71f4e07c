"""/info.json: what is known of the dump, for programs.

`schema` counts incompatible changes of the names below; new names may appear without one. Sizes are bytes, addresses
numbers, times seconds since the epoch; what is unknown is null or empty.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, ClassVar

from dumpfs import __version__
from dumpfs.errors import explain
from dumpfs.vfs.census import take_census
from dumpfs.vfs.context import Dump
from dumpfs.vfs.views.base import INLINE_PFNS, BuiltFile
from dumpfs.vfs.views.eraseinfo import erased

if TYPE_CHECKING:
    from dumpfs.linux.kernel import Kernel

SCHEMA = 1
LEVEL_BITS = {1: "zero", 2: "cache", 4: "private cache", 8: "user", 16: "free"}
"""makedumpfile's -d bits: what each leaves out."""
_NOT_META = ("header", "uts", "virtual_loads", "dump_level")


@dataclass(slots=True)
class InfoFile(BuiltFile):
    """Facts as JSON."""

    ABOUT: ClassVar[str] = (
        "what is known of the dump, for programs: header, kernel and where each fact came from, pages by state."
    )

    @property
    def ready(self) -> bool:
        """See `FileNode.ready`."""
        return self.content is not None or self.dump.image.meta.max_pfn <= INLINE_PFNS

    def render(self) -> bytes:
        """See `RenderedFile.render`."""
        return json.dumps(build_info(self.dump), indent=2).encode() + b"\n"


def build_info(dump: Dump) -> dict[str, object]:
    """The facts as JSON types; nothing is read page by page."""
    meta, phys = dump.image.meta, dump.phys
    census = take_census(dump)
    page_size = phys.page_size
    pages = {name: getattr(census, name) for name in ("ram", "stored", "partial", "excluded", "lost")}
    return {
        "schema": SCHEMA,
        "dumpfs": __version__,
        "files": [
            {"path": path, "size": None if status is None else status.st_size}
            for path, status in zip(dump.paths, dump.statuses, strict=True)
        ],
        "dump": {f.name: getattr(meta, f.name) for f in fields(meta) if f.name not in _NOT_META}
        | {"level": meta.dump_level, "level_excludes": level_words(meta.dump_level), "uts": asdict(meta.uts)},
        "header": dict(meta.header),
        "crash_time": dump.crash_time_ns / 1e9,
        "kernel": _kernel(dump),
        "page_size": page_size,
        "pages": pages,
        "sizes": {name: count * page_size for name, count in pages.items()} | {"hmem": dump.memory_size},
        "notices": [*dump.image.notices, *filter(None, (erased(dump),))],
        "not_offered": {path: reason for path, _, reason in dump.tree.views() if reason is not None},
    }


def level_words(level: int | None) -> list[str] | None:
    """What a dump level leaves out, in words; None when the level is unknown."""
    if level is None or level < 0:
        return None
    return [word for bit, word in LEVEL_BITS.items() if level & bit]


def _kernel(dump: Dump) -> dict[str, object] | None:
    """Facts about the dumped kernel, or None when not even its architecture is known."""
    if dump.kernel is not None:
        return kernel_facts(dump.kernel)
    error = dump.kernel_error
    return {"problems": [explain(error)]} if error is not None else None


def kernel_facts(kernel: Kernel) -> dict[str, object]:
    """What is known of a kernel, as JSON types."""
    facts: dict[str, object] = {
        "machine": kernel.machine,
        "byteorder": kernel.byteorder,
        "word_size": kernel.word_size,
        "release": kernel.release,
        "build_id": kernel.build_id,
        "cpus": kernel.cpus,
        "uts": asdict(kernel.uts),
        "crash_time": kernel.crash_time,
        "phys_base": kernel.phys_base,
        "kaslr_offset": kernel.kaslr_offset,
        "page_offset": kernel.page_offset,
    }
    text = kernel.text
    facts["text"] = dict(zip(("vaddr", "paddr", "size"), text, strict=True)) if text is not None else None
    origins: Mapping[str, str] = kernel.origins
    return facts | {"origins": dict(origins), "problems": list(kernel.problems)}
