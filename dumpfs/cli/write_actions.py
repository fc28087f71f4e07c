"""What `dumpfs write` does besides writing a dump: the log, VMCOREINFO of a vmlinux, rearranging, one translation."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from dumpfs.cli.common import warn
from dumpfs.errors import (
    CorruptDumpError,
    DumpfsError,
    IncompleteDumpError,
    SourceError,
    ViewError,
    VmcoreinfoError,
    WriteError,
)

if TYPE_CHECKING:
    from dumpfs.cli.write_options import Resolved
    from dumpfs.linux.kernel import Kernel
    from dumpfs.linux.printk import Dmesg
    from dumpfs.writer.rearrange import Rearranger
    from dumpfs.writer.target import Target


def _open_kernel(resolved: Resolved) -> Kernel:
    from dumpfs.cli.write_options import read_text
    from dumpfs.writer.source import open_source
    from dumpfs.writer.understand import understand

    args = resolved.args
    image = open_source(resolved.sources)
    info = read_text(args.vmcoreinfo) if args.vmcoreinfo else None
    return understand(image, vmcoreinfo=info, vmlinux=args.vmlinux).deep


def _save(path: str, data: bytes, force: bool) -> None:
    """Write a small result whole, or not at all."""
    from dumpfs.writer.bytesink import PlainSink
    from dumpfs.writer.target import Target

    target = Target(path, force=force)
    try:
        if target.seekable:
            PlainSink(target.fd).write_at(0, [data])
        else:
            view = memoryview(data)
            while view:
                view = view[os.write(target.fd, view) :]
        target.finish()
    except OSError as exc:
        target.discard()
        raise WriteError(f"{path}: {exc.strerror}") from exc
    finally:
        target.close()


def dump_dmesg(resolved: Resolved, args: argparse.Namespace) -> int:
    """--dump-dmesg: the kernel log of SRC to DST; exit code 4 when some of it is missing."""
    from dumpfs.linux.printk import render_dmesg

    kernel = _open_kernel(resolved)
    try:
        log = _log_since_clear(kernel) if args.partial_dmesg else render_dmesg(kernel)
        for notice in log.notices:
            warn(notice)
    finally:
        kernel.image.close()
    _save(resolved.outputs[0], bytes(log.text), args.force)
    return CorruptDumpError.exit_code if log.gaps else 0


def _log_since_clear(kernel: Kernel) -> Dmesg:
    """The log from the record on that `dmesg -c` left off at.

    clear_seq is a number (3.5 to 5.11), or since 5.12 a pair of which the lowest bit of a count tells the valid one.
    """
    from dumpfs.linux.logrecord import LogRecord, LogReport, render_records
    from dumpfs.linux.printk import Dmesg, records

    info, space = kernel.vmcoreinfo, kernel.space
    address = info.symbol("clear_seq") if info is not None else None
    if info is None or space is None or address is None:
        raise VmcoreinfoError("SYMBOL(clear_seq)", hint="leave --partial-dmesg out to get the whole log")
    inside = info.offset("latched_seq.val")
    if inside is not None:
        address += inside + 8 * (space.read_u32(address) & 1)
    clear = space.read_u64(address)
    signed = kernel.arch is not None and kernel.arch.signed_char
    report = LogReport()
    since = (r for r in records(kernel, report) if not isinstance(r, LogRecord) or r.seq >= clear)
    text = render_records(since, signed_char=signed)
    return Dmesg(text, report.notices(), report.gaps)


def generate_vmcoreinfo(resolved: Resolved, args: argparse.Namespace) -> int:
    """-g: VMCOREINFO of the vmlinux given with -x."""
    from dumpfs.linux.vmcoreinfo_make import make_vmcoreinfo

    _save(resolved.outputs[0], make_vmcoreinfo(args.vmlinux), args.force)
    return 0


def translate(resolved: Resolved, args: argparse.Namespace) -> int:
    """--vtop: the physical address of a kernel virtual one."""
    kernel = _open_kernel(resolved)
    try:
        if kernel.space is None:
            raise ViewError("kernel memory cannot be translated", hint="; ".join(kernel.problems) or None)
        paddr = kernel.space.translate(args.vtop)
    finally:
        kernel.image.close()
    print(f"{args.vtop:#x} -> {paddr:#x}")
    return 0


def rearrange(resolved: Resolved, args: argparse.Namespace, stop: Callable[[], str] = str) -> int:
    """-R: a flattened stream, from SRC or standard input, to DST."""
    from dumpfs.writer.bytesink import PlainSink
    from dumpfs.writer.rearrange import Rearranger
    from dumpfs.writer.target import Target

    fd, name = _open_stream(resolved)
    target = Target(resolved.outputs[0], force=args.force)
    try:
        cause = _rearrange(Rearranger(fd, name, PlainSink(target.fd, args.limit_size), stop), target)
    finally:
        target.close()
        if fd != sys.stdin.fileno():
            os.close(fd)
    if cause:
        raise IncompleteDumpError(
            f"{cause[1]}: {cause[0]}; what arrived can be read, and is marked incomplete",
            hint="send the stream once more",
        )
    return 0


def _rearrange(rearranger: Rearranger, target: Target) -> tuple[str, str] | None:
    """Run it; returns why it ended early and what the file is called then, or None."""
    try:
        done = rearranger.run()
    except DumpfsError:
        target.discard()
        raise
    except OSError as exc:
        return exc.strerror or str(exc), target.abandon()
    if done.cause:
        return done.cause, target.abandon()
    target.finish()
    return None


def _open_stream(resolved: Resolved) -> tuple[int, str]:
    if not resolved.sources or resolved.sources[0] == "-":
        return sys.stdin.fileno(), "standard input"
    path = resolved.sources[0]
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC), path
    except OSError as exc:
        raise SourceError(path, exc.strerror or str(exc)) from exc
