"""The kernel of a source, with what the user gives to know it better (-i, -x)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from dumpfs.errors import UsageError, VmcoreinfoError
from dumpfs.formats.base import DumpImage
from dumpfs.linux.kernel import Kernel, find_kernel
from dumpfs.vmcoreinfo import Vmcoreinfo

_FILTER_KEY = "SIZE(page)"
"""A VMCOREINFO without it says nothing about pages at all."""


def understand(image: DumpImage, *, vmcoreinfo: bytes | None, vmlinux: str | None, filtering: bool = False) -> Kernel:
    """The kernel in `image`.

    Args:
        image: the dump.
        vmcoreinfo: text of -i: keys that the dump's own VMCOREINFO lacks are taken from it.
        vmlinux: path of -x, likewise.
        filtering: pages will be judged, so VMCOREINFO is worth a search of the whole memory.

    Raises:
        DumpfsError: the user's files are not what they should be.
        UsageError: they are another kernel's.
    """
    own = image.vmcoreinfo_text()
    has_own = own is not None and bool(own.strip(b"\0"))
    kernel = find_kernel(image, vmcoreinfo=None if has_own else vmcoreinfo, vmlinux=vmlinux)
    if filtering:
        kernel = kernel.deep
    extra = vmcoreinfo if has_own else None
    if extra is None and vmlinux is not None and not _tells_pages(kernel):
        from dumpfs.linux.vmcoreinfo_make import make_vmcoreinfo

        extra = make_vmcoreinfo(vmlinux)
    if extra is None:
        return kernel
    _refuse_other_kernel(kernel, extra, by_file=vmcoreinfo is not None)
    return replace(kernel, vmcoreinfo=_merged(kernel, extra))


def describe(kernel: Kernel) -> Iterator[str]:
    """What is known of the source and its kernel, a line each, for who looks for the reason of something."""
    meta = kernel.image.meta
    yield f"source: {meta.format}, compression {meta.compression}, level {meta.dump_level}, max_pfn {meta.max_pfn:#x}"
    yield f"kernel: {kernel.release or 'unknown'} {kernel.build_id}".rstrip() + f", {kernel.machine or 'no machine'}"
    for name in ("page_size", "phys_base", "kaslr_offset", "page_offset"):
        value = getattr(kernel, name)
        yield f"{name}: {'unknown' if value is None else hex(value)}"
    for name, origin in kernel.origins.items():
        yield f"{name}: by {origin}"
    yield from kernel.problems


def _refuse_other_kernel(kernel: Kernel, extra: bytes, *, by_file: bool) -> None:
    """Keys of another kernel would make a silently wrong dump.

    Raises:
        VmcoreinfoError: what the user gave is no VMCOREINFO.
        UsageError: it tells of another kernel.
    """
    given = Vmcoreinfo(extra)
    if not given.release:
        raise VmcoreinfoError("OSRELEASE", "not in the given VMCOREINFO file")
    if (kernel.release and given.release != kernel.release) or (
        kernel.build_id and given.build_id and given.build_id != kernel.build_id
    ):
        raise UsageError(
            f"{'the file of -i' if by_file else 'the vmlinux of -x'} is of another kernel: {given.release} "
            f"{given.build_id}".rstrip(),
            hint=f"the dump is of {kernel.release} {kernel.build_id}".rstrip(),
        )


def _tells_pages(kernel: Kernel) -> bool:
    return kernel.vmcoreinfo is not None and _FILTER_KEY in kernel.vmcoreinfo


def _merged(kernel: Kernel, extra: bytes) -> Vmcoreinfo:
    """The kernel's own lines, and of `extra` those it lacks, at the addresses where the kernel ran."""
    from dumpfs.linux.vmlinux import relocate

    own = kernel.vmcoreinfo.raw if kernel.vmcoreinfo is not None else b""
    if b"\nKERNELOFFSET=" not in b"\n" + extra:  # link addresses: made from a vmlinux
        extra = relocate(extra, kernel.kaslr_offset or 0)
    known = {line.partition(b"=")[0] for line in own.splitlines()}
    added = [line for line in extra.splitlines() if line.partition(b"=")[0] not in known]
    return Vmcoreinfo(own.rstrip(b"\0\n") + b"\n" + b"\n".join(added) + b"\n" if own else extra)
