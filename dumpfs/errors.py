"""What can go wrong, as one small family of exceptions.

Every error a user may meet is a `DumpfsError`: it has a one-line message that names the object and the numbers,
an optional `hint` that names a remedy, an `exit_code` for the command line and an `errno` for the mount.
Anything else that escapes is a bug.
"""

from __future__ import annotations

import errno
from typing import ClassVar

from dumpfs.units import PageState, Pfn, one_line


class DumpfsError(Exception):
    """Base of every expected failure."""

    exit_code: ClassVar[int] = 1
    errno: int = errno.EIO

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        message = one_line(message)  # it may quote a path or a dead kernel
        super().__init__(message)
        self.message = message
        self.hint = None if hint is None else one_line(hint)
        """What the user can do about it, in one line, or None."""


def explain(error: DumpfsError) -> str:
    """An error and its remedy in one line."""
    return f"{error.message} ({error.hint})" if error.hint else error.message


class UsageError(DumpfsError):
    """The command line or an option is wrong."""

    exit_code = 2
    errno = errno.EINVAL


class SourceError(DumpfsError):
    """An input cannot be read: missing, no permission, an I/O error below us."""

    def __init__(self, path: str, problem: str, *, hint: str | None = None) -> None:
        super().__init__(f"{path}: {problem}", hint=hint)
        self.path = path


class FormatError(DumpfsError):
    """The content of an input is not what its format promises.

    Args:
        source: name of the input.
        problem: what is wrong, with the numbers.
        offset: byte offset in the input where it was seen, or None.
    """

    exit_code = 3

    def __init__(self, source: str, problem: str, *, offset: int | None = None, hint: str | None = None) -> None:
        where = "" if offset is None else f" at offset {offset:#x}"
        super().__init__(f"{source}: {problem}{where}", hint=hint)
        self.source = source
        self.offset = offset


class UnknownFormatError(FormatError):
    """Nothing recognised the input."""

    errno = errno.EINVAL


class UnsupportedFeatureError(FormatError):
    """The input was recognised, but dumpfs does not implement it."""

    errno = errno.ENOTSUP


class CorruptDumpError(FormatError):
    """Contradictory or impossible values."""

    exit_code = 4


class TruncatedDumpError(FormatError):
    """The data ends before the header says it does."""

    exit_code = 4


class CodecError(DumpfsError):
    """Stored bytes do not decode to exactly one page."""

    exit_code = 4

    def __init__(self, codec: str, problem: str, *, hint: str | None = None) -> None:
        super().__init__(f"{codec}: {problem}", hint=hint)
        self.codec = codec


class CodecUnavailableError(CodecError):
    """The library of a codec is not installed; only that codec's pages are affected."""

    exit_code = 5
    errno = errno.ENOTSUP

    def __init__(self, codec: str, package: str) -> None:
        super().__init__(codec, f"no library for {codec} pages is installed", hint=f"pip install {package}")
        self.package = package


class PageError(DumpfsError):
    """A page has no content that could be handed out.

    Args:
        pfn: kernel page frame number.
        state: why.
        detail: more words, for instance the codec's complaint.
    """

    exit_code = 4

    def __init__(self, pfn: Pfn, state: PageState, detail: str = "", *, hint: str | None = None) -> None:
        more = f" ({detail})" if detail else ""
        super().__init__(f"page {pfn:#x} is {state.name.lower()}{more}", hint=hint)
        self.pfn = pfn
        self.state = state
        self.detail = detail


class ExcludedPageError(PageError):
    """The page existed but was left out on purpose by the dump level."""

    errno = errno.ENODATA

    def __init__(self, pfn: Pfn) -> None:
        super().__init__(pfn, PageState.EXCLUDED, "left out by the dump level")


class AbsentPageError(PageError):
    """The page is not RAM."""

    errno = errno.ENXIO

    def __init__(self, pfn: Pfn) -> None:
        super().__init__(pfn, PageState.ABSENT, "not RAM")


class TranslationError(DumpfsError):
    """A virtual address has no mapping.

    Args:
        vaddr: the address.
        problem: where the walk ended and why.
        level: page-table level that had no entry, counted from the page (1), or 0 when no walk was made.
    """

    exit_code = 6
    errno = errno.EFAULT

    def __init__(self, vaddr: int, problem: str, *, level: int = 0, hint: str | None = None) -> None:
        super().__init__(f"virtual address {vaddr:#x}: {problem}", hint=hint)
        self.vaddr = vaddr
        self.level = level


class VmcoreinfoError(DumpfsError):
    """A line of VMCOREINFO that is needed is missing or malformed."""

    exit_code = 6
    errno = errno.ENODATA

    def __init__(self, key: str, problem: str = "not in VMCOREINFO", *, hint: str | None = None) -> None:
        super().__init__(f"{key}: {problem}", hint=hint)
        self.key = key


class ViewError(DumpfsError):
    """A view cannot be offered for this dump; the message says what would bring it."""

    exit_code = 6
    errno = errno.ENODATA


class MountError(DumpfsError):
    """Mounting or unmounting failed."""

    exit_code = 7


class WriteError(DumpfsError):
    """Writing a dump failed."""

    exit_code = 8


class IncompleteDumpError(WriteError):
    """The output was ended early and is marked incomplete."""

    errno = errno.ENOSPC


def page_error(pfn: Pfn, state: PageState, detail: str = "") -> PageError:
    """The narrowest `PageError` for a page in `state`."""
    if state is PageState.EXCLUDED:
        return ExcludedPageError(pfn)
    if state is PageState.ABSENT:
        return AbsentPageError(pfn)
    return PageError(pfn, state, detail)
