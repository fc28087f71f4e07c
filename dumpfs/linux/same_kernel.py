"""One rule for what the user names beside a dump: a vmlinux or VMCOREINFO of another kernel is refused, whoever asks.

What memory says comes first, for a dump may hold two kernels, and the headers are of one of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dumpfs.errors import UsageError
from dumpfs.linux.identity import KernelMatch, match_kernel, read_identity, read_running_build_id
from dumpfs.linux.vmcoreinfo_judge import Told

if TYPE_CHECKING:
    from dumpfs.linux.kernel import Kernel

_GIVEN_HINT = "leave it out to have the dump's own used, or name that of the kernel that crashed"


def match_vmlinux(kernel: Kernel, path: str, banner: str = "") -> KernelMatch:
    """Whether the vmlinux at `path` is the dumped kernel's.

    Args:
        kernel: the dumped one.
        path: the file.
        banner: linux_banner of the dump if it is known, or ''; else memory is asked for it.

    Raises:
        DumpfsError: the file cannot be read as an ELF file.
    """
    identity = read_identity(path)
    running = ""
    if kernel.space is not None:
        running = read_running_build_id(identity, kernel.kaslr_offset or 0, kernel.space.read)
    if not banner:
        # The banner is "Linux version RELEASE (who built it) (with what) VERSION"; utsname has its two ends.
        uts = kernel.uts
        begin, end = f"Linux version {uts.release} (", f" {uts.version}"
        told = uts.release and uts.version
        banner = next((b for b in identity.banners if told and b.startswith(begin) and b.endswith(end)), "")
    return match_kernel(identity, kernel.vmcoreinfo, running, banner)


def refuse_other_kernel(kernel: Kernel, told: Told | None) -> None:
    """Refuse what the user named where it is of another kernel: its bytes would be read wrongly without a word.

    Args:
        kernel: the dumped one, as understood with what the user named.
        told: VMCOREINFO as the dump itself has it, or None.

    Raises:
        UsageError: it is of another kernel.
        DumpfsError: a vmlinux cannot be read.
    """
    if kernel.options.vmcoreinfo is not None:
        _refuse_vmcoreinfo(kernel, told)
    if kernel.options.vmlinux is not None:
        match = match_vmlinux(kernel, kernel.options.vmlinux)
        if match.matches is False:
            raise UsageError(match.sentence, hint=_hint(kernel))


def _refuse_vmcoreinfo(kernel: Kernel, told: Told | None) -> None:
    from dumpfs.linux.kernel import is_of_memory

    given, fits = kernel.vmcoreinfo, is_of_memory(kernel)
    if fits or given is None:
        return
    if fits is False:
        dump = kernel.uts.release
    elif told is not None and not told.doubt and told.info.release != given.release:
        dump = told.info.release
    else:
        return
    text = f"the given VMCOREINFO is of another kernel: {given.release}; the dump is of {dump}"
    raise UsageError(text, hint=_GIVEN_HINT)


def _hint(kernel: Kernel) -> str:
    if not kernel.release:
        return "dumpfs info says what is known of the dump's kernel"
    what = f"vmlinux of {kernel.release}" + (f" with build-id {kernel.build_id}" if kernel.build_id else "")
    return f"the {what} is wanted"
