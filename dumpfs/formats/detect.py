"""Opening a dump: from names of files to the image that answers for them.

Files are all opened before anything is read of them, and closed again when opening fails. The table holds names; a
format's module is imported when its signature was seen.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from importlib import import_module
from operator import attrgetter
from typing import NamedTuple

from dumpfs.elf.structs import EI_DATA, ELF_MAGIC, ELFDATA2MSB, ET_DYN, ET_EXEC
from dumpfs.errors import DumpfsError, FormatError, SourceError, UnsupportedFeatureError, UsageError
from dumpfs.formats.base import DumpImage
from dumpfs.formats.foreign import HEAD_SIZE, recognised, refusal
from dumpfs.formats.pieces import Piece, split_address
from dumpfs.sources import flattened
from dumpfs.sources.base import ByteSource
from dumpfs.sources.local import FileSource

StrPath = str | os.PathLike[str]


class Format(NamedTuple):
    """One format that is read."""

    name: str
    magics: tuple[bytes, ...]
    """What its files begin with, any of them; none: never guessed, only opened by name."""
    module: str
    opener: str
    """What in the module is called with the list of sources."""
    in_parts: bool = False
    """Whether several files may make one dump."""


FORMATS = (
    Format("kdump", (b"KDUMP   ",), "dumpfs.formats.kdump.image", "KdumpImage.open", in_parts=True),
    Format("elf", (ELF_MAGIC,), "dumpfs.formats.elf", "open_elf"),
    Format("lime", (b"EMiL", b"LiME"), "dumpfs.formats.lime", "open_lime"),
    Format("raw", (), "dumpfs.formats.raw", "open_raw"),
)
FORMAT_NAMES = tuple(f.name for f in FORMATS)

_MAX_FOLDER_FILES = 1000
_LISTED = 8


def open_image(
    paths: Sequence[StrPath], *, format: str | None = None, readers: int = 0, pieces: Sequence[Piece] = ()
) -> DumpImage:
    """The dump in a file, in the parts of a split set in any order, or in a folder that holds one dump.

    Args:
        paths: a file, several parts, or one folder such as /var/crash/<date>.
        format: one of `FORMAT_NAMES` instead of finding out; 'raw' is never found out.
        readers: processes that will go through the dump together; see `FileSource`.
        pieces: where the pieces of one flat file belong; else paths may be `FILE@ADDRESS`, see `pieces`.

    Raises:
        UsageError: no path, an unknown format name, several files that are no split set, or pieces that fit neither
            the files nor each other.
        SourceError: a file cannot be opened.
        UnknownFormatError: nothing recognised it.
        UnsupportedFeatureError: recognised, but not read; the hint says what to do.
        FormatError: the folder does not hold exactly one dump, or the dump's headers are broken.
    """
    if not paths:
        raise UsageError("no dump was named")
    chosen = _format_by_name(format)
    with ExitStack() as opened:
        placed = [split_address(path) for path in find_files(paths)]
        files = _open_files((path for path, _ in placed), opened, readers)
        addresses = [address for _, address in placed]
        if pieces or any(address is not None for address in addresses):
            if chosen is not None and chosen.magics:
                problem = f"a {chosen.name} dump says itself where its memory belongs"
                raise UsageError(problem, hint="leave out @ADDRESS and map=")
            image: DumpImage = import_module("dumpfs.formats.raw").open_pieces(files, pieces, addresses)
            opened.pop_all()
            return image
        if chosen is None:
            sources = [_unwrapped(f) for f in files]
            chosen = _common_format(sources)
        elif chosen.magics:
            sources = [_unwrapped(f) for f in files]
        else:
            sources = files
        if len(sources) > 1 and not chosen.in_parts:
            raise UsageError(f"{len(sources)} files were named, and a {chosen.name} dump is one file")
        image = _open_as(chosen, sources)
        opened.pop_all()
        return image


def find_files(paths: Iterable[StrPath]) -> list[str]:
    """The files that are meant: each folder stands for the one dump in it, or for the parts of one split set.

    Raises:
        FormatError: a folder does not hold exactly one dump.
        SourceError: a folder cannot be read.
    """
    return [name for path in paths for name in (_dumps_in(path) if os.path.isdir(path) else (os.fspath(path),))]


def _format_by_name(name: str | None) -> Format | None:
    if name is None:
        return None
    for row in FORMATS:
        if row.name == name:
            return row
    raise UsageError(f"unknown format {name!r}", hint=f"one of {', '.join(FORMAT_NAMES)}")


def _open_as(row: Format, sources: Sequence[ByteSource]) -> DumpImage:
    image: DumpImage = attrgetter(row.opener)(import_module(row.module))(sources)
    return image


def _open_files(paths: Iterable[StrPath], opened: ExitStack, readers: int) -> list[ByteSource]:
    """Sources of all the files."""
    found: list[ByteSource] = []
    for path in paths:
        source = FileSource(path, readers=readers)
        opened.callback(source.close)
        found.append(source)
    return found


def _unwrapped(source: ByteSource) -> ByteSource:
    """The source itself, or the view of what a flattened file stands for."""
    if flattened.probe(source.read_at(0, len(flattened.SIGNATURE))):
        return flattened.FlattenedSource(source)
    return source


def _match(head: bytes) -> Format | None:
    return next((row for row in FORMATS if head.startswith(row.magics or (b"\0no magic",))), None)


def _is_program(head: bytes) -> bool:
    """Whether an ELF file is a vmlinux or another program, not a core."""
    if not head.startswith(ELF_MAGIC) or len(head) < 18:
        return False
    return int.from_bytes(head[16:18], "big" if head[EI_DATA] == ELFDATA2MSB else "little") in (ET_EXEC, ET_DYN)


def _common_format(sources: Sequence[ByteSource]) -> Format:
    """The format of all the sources.

    Raises:
        FormatError: one of them is no dump.
        UsageError: they are of several formats.
    """
    formats = []
    for source in sources:
        head = source.read_at(0, HEAD_SIZE)
        row = _match(head)
        if row is None:
            raise _unreadable(source, head)
        if len(sources) > 1 and _is_program(head):
            raise UnsupportedFeatureError(
                source.name,
                "is a vmlinux (or another program), not a part of a dump",
                hint=f"name the dump alone, and give this file with -o vmlinux={source.name}",
            )
        formats.append(row)
    for row, source in zip(formats, sources, strict=True):
        if len(sources) > 1 and not row.in_parts:
            raise UsageError(
                f"{source.name}: a dump of format {row.name} is one file; only kdump dumps are split into several",
                hint="name one dump",
            )
    return formats[0]


def _unreadable(source: ByteSource, head: bytes) -> FormatError:
    lacks = source.incomplete_reason
    if lacks and not any(head):
        return FormatError(source.name, f"the dump's own header never came: {lacks}")
    return refusal(head, source.name)


# -- folders -----------------------------------------------------------------------------------------------------------


def _dumps_in(folder: StrPath) -> list[str]:
    """The one dump of a folder: a path, or those of all parts of a split set.

    Raises:
        FormatError: there is none, or more than one.
        SourceError: the folder cannot be read.
    """
    name = os.fspath(folder)
    dumps: list[tuple[str, Format]] = []
    refused: list[FormatError] = []
    troubles: list[DumpfsError] = []
    files, folders = _list(name)
    for path in files:
        try:
            row, error = _look(path)
        except DumpfsError as exc:  # not readable, or a broken flattened stream
            troubles.append(exc)
            continue
        if row is not None:
            dumps.append((path, row))
        elif error is not None:
            refused.append(error)
    if len(dumps) == 1 or (dumps and _is_split_set(dumps)):
        return [path for path, _ in dumps]
    if dumps:
        listed = ", ".join(os.path.basename(path) for path, _ in dumps[:_LISTED])
        more = f" and {len(dumps) - _LISTED} more" if len(dumps) > _LISTED else ""
        raise FormatError(name, f"holds {len(dumps)} dumps: {listed}{more}", hint="name one of them")
    if refused:
        raise refused[0]
    if troubles:
        raise troubles[0]
    hint = f"name one of the folders inside it, such as {folders[-1]}" if folders else "name the dump file"
    raise FormatError(name, f"holds no dump ({len(files)} files, {len(folders)} folders)", hint=hint)


def find_dumps(folder: StrPath) -> list[str]:
    """Dumps in a folder and in the folders in it: their files, and folders that hold one dump, sorted.

    Raises:
        SourceError: the folder cannot be read.
        FormatError: it holds more files than anybody would look through.
    """
    files, folders = _list(os.fspath(folder))
    found = []
    for path in files:
        try:
            row, error = _look(path)
        except DumpfsError:
            row, error = None, None  # whoever names it is told why
        if row is not None or error is not None:
            found.append(path)
    for path in folders[:_MAX_FOLDER_FILES]:
        try:
            if _dumps_in(path):
                found.append(path)
        except DumpfsError as exc:
            if not isinstance(exc, FormatError) or "holds no dump" not in exc.message:
                found.append(path)
    return sorted(found)


def _list(folder: str) -> tuple[list[str], list[str]]:
    """Paths of the regular files and of the folders in `folder`, sorted; hidden ones are left out."""
    files, folders = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.append(entry.path)
                elif entry.is_file():
                    files.append(entry.path)
                if len(files) > _MAX_FOLDER_FILES:
                    raise FormatError(folder, f"holds more than {_MAX_FOLDER_FILES} files", hint="name the dump file")
    except OSError as exc:
        raise SourceError(folder, exc.strerror or str(exc)) from exc
    return sorted(files), sorted(folders)


def _look(path: str) -> tuple[Format | None, FormatError | None]:
    """Format of a file in a folder; else why it is refused, if it is something that might be meant."""
    source: ByteSource = FileSource(path)
    try:
        source = _unwrapped(source)
        head = source.read_at(0, HEAD_SIZE)
        if _is_program(head):
            return None, None
        return _match(head), recognised(head, path)
    finally:
        source.close()


def _is_split_set(dumps: Sequence[tuple[str, Format]]) -> bool:
    """Whether every dump says of itself that it is a part."""
    if any(row.name != "kdump" for _, row in dumps):
        return False
    from dumpfs.formats.kdump.header import parse_header

    for path, _ in dumps:
        source: ByteSource = FileSource(path)
        try:
            source = _unwrapped(source)
            if not parse_header(source).is_split:
                return False
        except DumpfsError:
            return False
        finally:
            source.close()
    return True
