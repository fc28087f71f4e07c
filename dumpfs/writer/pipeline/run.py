"""The whole of one `dumpfs write`: from sources to finished files.

    open the source -> understand its kernel -> choose pages -> headers -> batches -> finish, or leave a marked part

Whatever ends it early (no room, a limit, a signal, a worker that was killed), the pages that were written stay readable
and the dump is marked incomplete.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise, zip_longest
from typing import TYPE_CHECKING

from dumpfs.codecs.registry import CODEC_FLAGS, codec_name
from dumpfs.elf.core_notes import keep_kernel_notes
from dumpfs.errors import DumpfsError, IncompleteDumpError, UsageError, VmcoreinfoError, WriteError
from dumpfs.formats.base import DumpImage
from dumpfs.linux.kernel import Kernel
from dumpfs.linux.pageclass import PageClassifier
from dumpfs.memory.allocator import keep_freed_memory
from dumpfs.units import Pfn
from dumpfs.writer.bitmaps import count_bits, without
from dumpfs.writer.bytesink import ByteSink, FlatSink, PlainSink
from dumpfs.writer.copythrough import choose_encoder
from dumpfs.writer.estimate import Estimate, estimate_size
from dumpfs.writer.fillup import NO_ROOM, fill_up
from dumpfs.writer.filters import CLASS_LEVELS, Selection, end_of_memory, lost_pages, needs_classes, select_pages
from dumpfs.writer.pipeline.engine import Job, Pipeline, Totals
from dumpfs.writer.plan import LEVEL_CACHE, LEVEL_CACHE_PRIVATE, LEVEL_ZERO, Eraser, WritePlan, header_facts, make_plan
from dumpfs.writer.resume import resume_sink
from dumpfs.writer.sink_elf import ElfSink
from dumpfs.writer.sink_kdump import KdumpSink
from dumpfs.writer.source import ErasedImage, in_kernel_pages, open_source
from dumpfs.writer.target import Target
from dumpfs.writer.uncached import BLOCK
from dumpfs.writer.understand import describe, understand
from dumpfs.writer.zeroscan import ZeroCollector, ZeroFinder

if TYPE_CHECKING:
    from dumpfs.writer.erase import EraseRules

_PART_ALIGN = 64
"""Parts of a split set begin at multiples of this: crash counts bits in words of 64 pfns."""


@dataclass(frozen=True, slots=True)
class WriteRequest:
    """What to write."""

    sources: tuple[str, ...]
    outputs: tuple[str, ...]
    """One, or the parts of a split set; '-' is standard output."""
    codec_flag: int | None = 0
    """Compression flag; None for that of the source."""
    level: int = 0
    elf: bool = False
    flatten: bool = False
    threads: int = 1
    limit: int | None = None
    force: bool = False
    resume: bool = False
    begin: int = 0
    length: int | None = None
    keep_unknown: bool = False
    keep_partial: bool = False
    splitblock_pfns: int = _PART_ALIGN
    vmcoreinfo: bytes | None = None
    vmlinux: str | None = None
    rules: EraseRules | None = None
    dry_run: bool = False
    check: bool = False
    """Read the dump back and compare it with the source."""


@dataclass(slots=True)
class Hooks:
    """How the caller hears of progress, and stops."""

    started: Callable[[WritePlan], None] = lambda plan: None
    progress: Callable[[int], None] = lambda pages: None
    stop: Callable[[], str] = str
    """The reason to stop early, or ''."""
    notice: Callable[[str], None] = lambda text: None
    debug: Callable[[str], None] = lambda text: None


@dataclass(slots=True)
class WriteReport:
    """What was done."""

    plan: WritePlan
    names: list[str] = field(default_factory=list)
    """The files, as they are called now."""
    totals: Totals = field(default_factory=Totals)
    resumable: bool = False
    """Whether an early end can be continued: not on a device or in a stream."""
    missing: int = 0
    """Pages that are not in the files because writing ended early."""
    cause: str = ""
    """Why it ended early, or ''."""
    source_incomplete: str = ""
    """Why the source itself is incomplete, or ''."""
    stats: dict[str, int] = field(default_factory=dict)
    estimate: Estimate | None = None
    """Of a dry run."""


class _Stopped(Exception):
    """The caller asked to stop before anything was written."""


def write_dump(request: WriteRequest, hooks: Hooks) -> WriteReport:
    """Write what `request` says.

    Raises:
        DumpfsError: nothing could be written, or a file could not be finished.
        IncompleteDumpError: stopped before the first byte.
    """
    keep_freed_memory()  # the workers inherit it
    readers = min(request.threads, len(os.sched_getaffinity(0)))  # more have no more of the source in work
    image = open_source(request.sources, readers=readers)
    try:
        kernel = understand(
            image, vmcoreinfo=request.vmcoreinfo, vmlinux=request.vmlinux, filtering=needs_classes(request.level)
        )
        for line in describe(kernel):
            hooks.debug(line)
        plan = plan_write(request, image, kernel, hooks)
        report = WriteReport(plan, stats=dict(plan.stats), source_incomplete=image.meta.incomplete_reason)
        if request.dry_run:
            files = max(len(request.outputs), 1)
            report.estimate = estimate_size(plan, elf=request.elf, files=files, tick=_ticker(hooks))
        else:
            _write(request, plan, hooks, report)
            if request.check and not report.cause:
                from dumpfs.writer.pipeline.verify import verify_dump

                verify_dump(report, request.threads)
        return report
    except _Stopped as exc:
        raise IncompleteDumpError(f"{exc}: nothing was written yet") from None
    finally:
        image.close()


def _ticker(hooks: Hooks) -> Callable[[], None]:
    """What to call every now and then while nothing is written yet."""

    def tick() -> None:
        if reason := hooks.stop():
            raise _Stopped(reason)

    return tick


def plan_write(request: WriteRequest, image: DumpImage, kernel: Kernel, hooks: Hooks) -> WritePlan:
    """The plan for `request`; reads the kernel's structures, and for an ELF core at level 1 every page.

    Raises:
        VmcoreinfoError: the level needs a key that is missing.
        UsageError: options that do not fit the source.
    """
    paged = in_kernel_pages(image, kernel.page_size)

    level = request.level
    classifier, level = _classifier(kernel, level, request.keep_unknown, hooks)
    max_mapnr = end_of_memory(paged)
    chosen = select_pages(
        paged,
        max_mapnr,
        level,
        classifier,
        begin=request.begin,
        length=request.length,
        keep_partial=request.keep_partial,
        tick=_ticker(hooks),
    )
    for notice in chosen.notices:
        hooks.notice(notice)
    eraser: Eraser | None = None
    eraseinfo = b""
    if request.rules is not None:
        eraser = request.rules.resolve(kernel, paged)
        eraseinfo = request.rules.eraseinfo()
        # The headers repeat what is in memory (the host's name): from now on, what will be left of it.
        erased = ErasedImage(paged, eraser)
        kernel = understand(erased, vmcoreinfo=request.vmcoreinfo, vmlinux=request.vmlinux)
    facts = header_facts(paged, kernel, level, max_mapnr, eraseinfo=eraseinfo)
    plan = make_plan(
        paged,
        facts,
        chosen.ram,
        chosen.dump,
        # Zero pages that shared a copy go on sharing it; an ELF core has no such thing, and left out they were lost.
        level=level | (0 if request.elf else (image.meta.dump_level or 0) & LEVEL_ZERO),
        codec_flag=_codec(image) if request.codec_flag is None else request.codec_flag,
        eraser=eraser,
        stats=_stats(chosen),
    )
    return _elf_plan(plan, request, hooks) if request.elf else plan


def _closed(level: int) -> int:
    """A level with the bits it implies."""
    return level | (LEVEL_CACHE if level & LEVEL_CACHE_PRIVATE else 0)


def _codec(image: DumpImage) -> int:
    return next((flag for flag in CODEC_FLAGS if codec_name(flag) == image.meta.compression), 0)


def _stats(chosen: Selection) -> dict[str, int]:
    return {"ram": count_bits(chosen.ram), **chosen.stats}


def _classifier(kernel: Kernel, level: int, keep_unknown: bool, hooks: Hooks) -> tuple[PageClassifier | None, int]:
    """What judges pages, and the level that can be kept."""
    if not level & CLASS_LEVELS & ~_closed(kernel.image.meta.dump_level or 0):
        level &= ~CLASS_LEVELS  # an earlier pass has left all of that out; judging again could find nothing
    info = kernel.vmcoreinfo
    always = info is not None and ("NUMBER(PG_hwpoison)" in info or "NUMBER(PAGE_OFFLINE_MAPCOUNT_VALUE)" in info)
    if not needs_classes(level) and not always:
        return None, level
    try:
        return PageClassifier(kernel), level
    except DumpfsError as exc:
        if not needs_classes(level):
            hooks.notice(f"broken and offline pages cannot be told apart and are kept: {exc.message}")
            return None, level
        if not keep_unknown:
            if isinstance(exc, VmcoreinfoError) or exc.hint:
                raise
            exc.hint = "give the kernel's VMCOREINFO with -i or its vmlinux with -x, or --keep-unknown"
            raise
        hooks.notice(f"pages cannot be told apart, all are kept: {exc.message}")
        return None, level & ~CLASS_LEVELS


def _elf_plan(plan: WritePlan, request: WriteRequest, hooks: Hooks) -> WritePlan:
    """The plan of an ELF core: lost and zero pages are not in it."""
    lost = lost_pages(plan.image, _ticker(hooks))
    dump, ram = without(plan.dump, lost), without(plan.ram, lost)
    notes = keep_kernel_notes(plan.facts.notes, plan.facts.byteorder)  # gdb does what notes of processes say
    for notice in notes.notices:
        hooks.notice(notice)
    facts = replace(plan.facts, notes=notes.data, vmcoreinfo=(0, 0))
    plan = replace(plan, facts=facts, dump=dump, ram=ram, count=count_bits(dump), codec_flag=0, copy_through=False)
    if not plan.level & LEVEL_ZERO:
        return plan
    collector = ZeroCollector(plan.dump)
    pipeline = Pipeline(ZeroFinder(plan), [collector], request.threads, lambda pages: None, hooks.stop)
    totals = pipeline.run(Job(0, *batch) for batch in plan.batches())
    if totals.cause:
        raise _Stopped(totals.cause)
    found = collector.without_zero
    stats = {**plan.stats, "zero": collector.zero}
    return replace(plan, dump=found, count=count_bits(found), level=plan.level & ~LEVEL_ZERO, stats=stats)


# -- output ------------------------------------------------------------------------------------------------------------


def split_parts(plan: WritePlan, count: int, align: int) -> list[tuple[Pfn, Pfn]]:
    """`count` ranges of pfns with about the same number of stored pages each, cut at multiples of `align` pfns."""
    align = -(-max(align, 1) // _PART_ALIGN) * _PART_ALIGN
    stop = plan.facts.max_mapnr
    bounds = [0]
    seen = 0
    for _, end, members in plan.batches():
        seen += members
        if len(bounds) < count and seen * count >= plan.count * len(bounds):
            cut = min(-(-end // align) * align, stop)
            bounds.append(cut)
    bounds += [stop] * (count + 1 - len(bounds))
    return list(pairwise(bounds))


def _write(request: WriteRequest, plan: WritePlan, hooks: Hooks, report: WriteReport) -> None:
    targets: list[Target] = []
    begun = False
    try:
        for path in request.outputs:
            targets.append(Target(path, force=request.force, resume=request.resume, stop=hooks.stop))
        sinks = _open_sinks(request, plan, targets)
        hooks.started(plan)
        starts = _begin(request, sinks, targets)
        begun = True
        hooks.progress(sum(sink.written for sink in sinks))
        report.totals = _run(request, plan, hooks, sinks, starts)
        _finish(report, sinks, targets)
    finally:
        for target in targets:
            if not begun and request.resume:
                target.restore()
            elif not begun:
                target.discard()
            target.close()


def _open_sinks(request: WriteRequest, plan: WritePlan, targets: Sequence[Target]) -> list[KdumpSink | ElfSink]:
    outs: list[ByteSink] = []
    for target in targets:
        if not target.seekable and not request.flatten:
            raise UsageError(
                f"{target.name} cannot be written by position", hint="-F writes the flattened form, made for pipes"
            )
        outs.append((FlatSink if request.flatten else PlainSink)(target.fd, request.limit))
    if request.elf:
        return [ElfSink(plan, outs[0])]
    parts = split_parts(plan, len(outs), request.splitblock_pfns) if len(outs) > 1 else [None]
    sinks: list[KdumpSink | ElfSink] = []
    for out, part, target in zip(outs, parts, targets, strict=True):
        sink = KdumpSink(plan, out, part)
        if isinstance(out, PlainSink):
            out.alignment = sink.alignment
            # What an earlier run has left may be in the cache, in pages that hold data and descriptors.
            if sink.alignment == BLOCK and not request.resume:
                out.uncached = target.open_uncached()
        sinks.append(sink)
    return sinks


def _begin(request: WriteRequest, sinks: Sequence[KdumpSink | ElfSink], targets: Sequence[Target]) -> list[Pfn]:
    """Write or check the headers; returns the pfn each file begins with."""
    try:
        if request.resume:
            return [resume_sink(s, t.fd, t.name) for s, t in zip(sinks, targets, strict=True)]
        for sink in sinks:
            if isinstance(sink.out, FlatSink):
                sink.out.begin()
            sink.begin()
    except OSError as exc:
        raise IncompleteDumpError(
            f"{targets[0].name}: not even the headers could be written: {exc.strerror}",
            hint="make room, or name another file",
        ) from exc
    return [sink.first for sink in sinks]


def _run(
    request: WriteRequest,
    plan: WritePlan,
    hooks: Hooks,
    sinks: Sequence[KdumpSink | ElfSink],
    starts: Sequence[Pfn],
) -> Totals:
    def stream(number: int) -> Iterator[Job]:
        return (Job(number, *batch) for batch in plan.batches(starts[number], sinks[number].stop))

    def jobs() -> Iterator[Job]:
        """The parts in turn, so that files on different disks are written at the same time."""
        for row in zip_longest(*map(stream, range(len(sinks)))):
            yield from (job for job in row if job is not None)

    encoder = choose_encoder(plan)
    totals = Pipeline(encoder, list(sinks), request.threads, hooks.progress, hooks.stop).run(jobs())
    if totals.errno in NO_ROOM and len(sinks) == 1 and isinstance(sinks[0], KdumpSink):
        fill_up(plan, sinks[0], encoder, hooks.stop)
    return totals


def _finish(report: WriteReport, sinks: Sequence[KdumpSink | ElfSink], targets: Sequence[Target]) -> None:
    complete = not report.totals.cause and not report.source_incomplete
    cause = report.totals.cause
    pairs = list(zip(sinks, targets, strict=True))
    try:
        for sink in sinks if not report.totals.stalled else ():
            sink.finish(complete=complete)
    except OSError as exc:
        cause = cause or exc.strerror or str(exc)
    if cause:
        report.cause = cause
        report.missing = sum(sink.missing for sink in sinks)
        report.resumable = not any(target.direct or isinstance(sink.out, FlatSink) for sink, target in pairs)
        report.names = [target.abandon() for target in targets]
        return
    for sink, target in pairs:
        _cut(sink, target)
        target.finish()
    report.names = [target.path for target in targets]


def _cut(sink: KdumpSink | ElfSink, target: Target) -> None:
    """A resumed file may have bytes of its earlier run behind its end."""
    if target.direct or not isinstance(sink.out, PlainSink):
        return
    end = sink.end
    try:
        if os.fstat(target.fd).st_size > end:
            os.ftruncate(target.fd, end)
    except OSError as exc:
        raise WriteError(f"{target.name}: cannot be cut to its length: {exc.strerror}") from exc
