"""The options of `dumpfs write`: makedumpfile's letters and words, and our own.

Every option of makedumpfile 1.7 is known here. It works, or it is accepted because it only tunes what we do otherwise
(`IGNORED`), or it is refused by name with the reason (`REFUSED`); the table in dumpfs-write(1) says the same.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dumpfs.errors import SourceError, UsageError
from dumpfs.units import parse_size

if TYPE_CHECKING:
    from dumpfs.writer.pipeline.run import WriteRequest

ZLIB, LZO, SNAPPY, ZSTD = 0x1, 0x2, 0x4, 0x20
MAX_LEVEL = 31
_KIB = 1024
_MAX_TEXT = 1 << 20

IGNORED: dict[str, str] = {
    "--cyclic-buffer": "the bitmap is a bit per page and is never cut into cycles",
    "--non-cyclic": "there are no cycles",
    "--non-mmap": "page data is never read through mmap",
    "--work-dir": "no temporary file is needed",
    "-b": "pages are read in batches of fixed size",
}
"""Accepted without effect, and why."""

REFUSED: dict[str, tuple[str, bool]] = {
    "-e": ("leaving out struct pages themselves makes dumps that tools cannot walk", False),
    "-X": ("Xen is not supported", False),
    "--xen-syms": ("Xen is not supported", True),
    "--xen-vmcoreinfo": ("Xen is not supported", True),
    "--xen_phys_start": ("Xen is not supported", True),
    "--diskset": ("sadump is not read", True),
    "--eppic": ("eppic programs are not run; --config erases symbols and members", True),
    "--extension": ("makedumpfile's binary extensions are not loaded", True),
    "--mem-usage": ("it looks into the running kernel; --dry-run --show-stats counts the pages of a dump", False),
}
"""Refused, and why; and whether the option takes an argument."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """A command line that makes sense."""

    args: argparse.Namespace
    action: str
    """'write', 'dmesg', 'rearrange', 'vmcoreinfo' or 'vtop'."""
    sources: tuple[str, ...]
    outputs: tuple[str, ...]
    levels: tuple[int, ...]
    """The dump levels to try, one after the other, when there is no room."""

    def _codec(self) -> int | None:
        if self.args.elf:
            return 0
        return None if self.args.reassemble and not self.args.codec else int(self.args.codec)

    def request(self, level_index: int, *, anew: bool = False) -> WriteRequest:
        """What to write at one of the levels; `anew` when an earlier level's output was dropped.

        Raises:
            SourceError: a file given with -i or --config cannot be read.
        """
        from dumpfs.writer.pipeline.run import WriteRequest

        args = self.args
        rules = None
        if args.config is not None:
            from dumpfs.writer.erase import EraseRules

            rules = EraseRules.parse(read_text(args.config), args.config, args.vmlinux)
        return WriteRequest(
            sources=self.sources,
            outputs=self.outputs,
            codec_flag=self._codec(),
            level=self.levels[level_index],
            elf=args.elf,
            flatten=args.flatten,
            threads=args.num_threads or available_cpus(),
            limit=args.limit_size,
            force=args.force or anew,
            resume=args.resume and not anew,
            begin=args.begin,
            length=args.length,
            keep_unknown=args.keep_unknown,
            keep_partial=args.keep_partial,
            splitblock_pfns=args.splitblock_size * _KIB // 4096,
            vmcoreinfo=read_text(args.vmcoreinfo) if args.vmcoreinfo else None,
            vmlinux=args.vmlinux,
            rules=rules,
            dry_run=args.dry_run,
            check=args.check,
        )


def available_cpus() -> int:
    """Processors this process may run on."""
    return len(os.sched_getaffinity(0))


def read_text(path: str) -> bytes:
    """The content of a small file.

    Raises:
        SourceError: it cannot be read or is not small.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(_MAX_TEXT + 1)
    except OSError as exc:
        raise SourceError(path, exc.strerror or str(exc)) from exc
    if len(text) > _MAX_TEXT:
        raise SourceError(path, f"is larger than {_MAX_TEXT} bytes; is it the right file?")
    return text


def _levels(text: str) -> tuple[int, ...]:
    levels = tuple(int(part) for part in text.split(","))
    if not all(0 <= level <= MAX_LEVEL for level in levels):
        raise ValueError(text)
    return levels


def _bytes(text: str) -> int:
    return int(text, 16) if text.lower().startswith("0x") else parse_size(text)


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


def _address(text: str) -> int:
    return int(text, 16)


def _message_level(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 31:
        raise ValueError(text)
    return value


for _function, _name in (
    (_levels, "dump level (0 to 31, or a list such as 1,3,31)"),
    (_bytes, "size"),
    (_count, "number"),
    (_address, "address"),
    (_message_level, "message level (0 to 31)"),
):
    _function.__name__ = _name  # what argparse calls it in "invalid ... value"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every option and the file names."""
    _add_format(parser)
    _add_filter(parser)
    _add_output(parser)
    _add_other(parser)
    parser.add_argument("files", nargs="*", metavar="FILE", help="SRC... DST (see above)")


def _add_format(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("format").add_mutually_exclusive_group()
    for letter, flag, name in (
        ("-c", ZLIB, "zlib"),
        ("-l", LZO, "lzo"),
        ("-p", SNAPPY, "snappy"),
        ("-z", ZSTD, "zstd"),
    ):
        group.add_argument(
            letter, dest="codec", action="store_const", const=flag, help=f"kdump, each page compressed with {name}"
        )
    group.add_argument("-E", dest="elf", action="store_true", help="ELF core instead of kdump")
    parser.set_defaults(codec=0)
    other = parser.add_argument_group("form")
    other.add_argument("-F", dest="flatten", action="store_true", help="flattened, for pipes; to stdout without DST")
    other.add_argument(
        "-R", dest="rearrange", action="store_true", help="put a flattened stream (stdin or SRC) in order"
    )
    other.add_argument("--split", action="store_true", help="SRC DST1 DST2 ...: a part of the pages to each")
    other.add_argument("--reassemble", action="store_true", help="SRC1 SRC2 ... DST: join the parts of a split set")
    other.add_argument(
        "--splitblock-size", type=_count, metavar="KIB", default=0, help="cut parts at multiples of this much memory"
    )


def _add_filter(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("filter")
    group.add_argument(
        "-d",
        dest="levels",
        type=_levels,
        default=(0,),
        metavar="LEVEL[,LEVEL...]",
        help="leave out: 1 zero, 2 cache, 4 private cache, 8 user, 16 free pages, and sums; of a list the next one is "
        "taken when there is no room",
    )
    group.add_argument("-x", dest="vmlinux", metavar="VMLINUX", help="the dumped kernel's vmlinux")
    group.add_argument("-i", dest="vmcoreinfo", metavar="FILE", help="the dumped kernel's VMCOREINFO")
    group.add_argument("--keep-unknown", action="store_true", help="keep pages that cannot be told apart")
    group.add_argument("--keep-partial", action="store_true", help="keep pages in which RAM ends, unlike makedumpfile")
    group.add_argument("--begin", type=_bytes, default=0, metavar="ADDR", help="only memory from this address on")
    group.add_argument("--length", type=_bytes, metavar="SIZE", help="only so much memory")
    group.add_argument("--config", metavar="FILE", help="erase what FILE (makedumpfile.conf(5)) names; needs -x or BTF")


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("-f", dest="force", action="store_true", help="replace DST, once the new dump is complete")
    group.add_argument("--resume", action="store_true", help="continue a dump that was ended early")
    group.add_argument("-L", "--limit-size", type=_bytes, metavar="SIZE", help="write no more than this")
    group.add_argument("--num-threads", type=_count, default=0, metavar="N", help="processes (default: all cores)")
    group.add_argument("--check", action="store_true", help="read the dump back and compare it with the source")
    group.add_argument("--dry-run", action="store_true", help="write nothing, count pages")
    group.add_argument("--show-stats", action="store_true", help="print pages by class")
    group.add_argument("--json", action="store_true", help="print the report as JSON")
    group.add_argument(
        "--message-level",
        type=_message_level,
        default=7,
        metavar="BITS",
        help="1 progress, 2 common, 4 error, 8 debug, 16 report",
    )
    group.add_argument("-D", dest="debug", action="store_true", help="debug messages")


def _add_other(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("other jobs")
    group.add_argument("-g", dest="generate", metavar="FILE", help="make VMCOREINFO of the vmlinux given with -x")
    group.add_argument("--dump-dmesg", action="store_true", help="write the kernel log of SRC to DST")
    group.add_argument("--partial-dmesg", action="store_true", help="with --dump-dmesg: only since the last clear")
    group.add_argument("--vtop", type=_address, metavar="ADDR", help="print the physical address of a virtual one")
    group.add_argument("--check-params", action="store_true", help="only check the command line")
    group.add_argument("-v", dest="show_version", action="version", version=_version(), help="print the version")
    for name in IGNORED:
        takes = name in ("--cyclic-buffer", "--work-dir", "-b")
        kind = {"metavar": "VALUE"} if takes else {"action": "store_true"}
        group.add_argument(name, dest=_dest(name), help=argparse.SUPPRESS, default=None, **kind)  # type: ignore[arg-type]
    for name, (_, takes) in REFUSED.items():
        kind = {"metavar": "VALUE"} if takes else {"action": "store_true"}
        group.add_argument(name, dest=_dest(name), help=argparse.SUPPRESS, default=None, **kind)  # type: ignore[arg-type]


def _version() -> str:
    from dumpfs import __version__

    return f"dumpfs write {__version__}"


def _dest(name: str) -> str:
    return "makedumpfile_" + name.strip("-").replace("-", "_")


def refuse_unsupported(args: argparse.Namespace) -> None:
    """Stop at an option of makedumpfile that is not offered.

    Raises:
        UsageError: naming it and the reason.
    """
    for name, (reason, _) in REFUSED.items():
        if getattr(args, _dest(name)) is not None and getattr(args, _dest(name)) is not False:
            raise UsageError(f"write: {name} is not offered: {reason}", hint="see the table in dumpfs-write(1)")


def resolve(args: argparse.Namespace) -> Resolved:
    """What the command line asks for.

    Raises:
        UsageError: options contradict each other, or file names are missing.
    """
    refuse_unsupported(args)
    if args.debug:
        args.message_level |= 8
    if args.show_stats:
        args.message_level |= 16
    files: Sequence[str] = args.files
    levels: tuple[int, ...] = args.levels
    action = _action(args)
    if action == "vmcoreinfo":
        if args.vmlinux is None:
            raise UsageError("write: -g needs the kernel's vmlinux", hint="-x VMLINUX")
        _want(files, 0, 0, "-g FILE -x VMLINUX")
        return Resolved(args, action, (), (args.generate,), levels)
    if action == "vtop":
        _want(files, 1, None, "--vtop ADDR SRC...")
        return Resolved(args, action, tuple(files), (), levels)
    if action == "dmesg":
        _want(files, 2, None, "--dump-dmesg SRC... DST")
        return Resolved(args, action, tuple(files[:-1]), (files[-1],), levels)
    if action == "rearrange":
        _want(files, 1, 2, "-R [SRC] DST")
        return Resolved(args, action, tuple(files[:-1]), (files[-1],), levels)
    return Resolved(args, action, *_files(args, files), levels)


def _action(args: argparse.Namespace) -> str:
    chosen = [
        name
        for name, is_set in (
            ("vmcoreinfo", args.generate is not None),
            ("dmesg", args.dump_dmesg),
            ("rearrange", args.rearrange),
            ("vtop", args.vtop is not None),
        )
        if is_set
    ]
    if len(chosen) > 1:
        raise UsageError("write: only one of -g, --dump-dmesg, -R and --vtop can be done at once")
    return chosen[0] if chosen else "write"


def _want(files: Sequence[str], least: int, most: int | None, form: str) -> None:
    if len(files) < least or (most is not None and len(files) > most):
        raise UsageError(f"write: {len(files)} file names were given", hint=f"dumpfs write {form}")


def _files(args: argparse.Namespace, files: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Sources and outputs of a write."""
    if args.split:
        if args.reassemble or args.elf or args.flatten:
            raise UsageError("write: --split makes kdump files only; not with --reassemble, -E or -F")
        _want(files, 3, None, "--split SRC DST1 DST2 ...")
        return (files[0],), tuple(files[1:])
    if args.dry_run:
        _want(files, 1, None, "--dry-run SRC... DST")
        return tuple(files[:-1]) or tuple(files), tuple(files[-1:])
    if args.flatten and len(files) == 1:
        if not args.force and os.isatty(1):
            raise UsageError("-F: a dump is no text for a terminal", hint="redirect it, name a file, or force it by -f")
        return (files[0],), ("-",)
    if args.reassemble and args.levels != (0,):
        raise UsageError("write: --reassemble does not filter", hint="write the joined dump once more with -d")
    _want(files, 2, None, "[OPTION...] SRC... DST")
    return tuple(files[:-1]), (files[-1],)
