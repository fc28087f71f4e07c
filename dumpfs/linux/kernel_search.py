"""A better understood kernel, by a search of its memory: for its VMCOREINFO where the dump has none to be believed, and
for page tables where that finds nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from dumpfs.linux.kernel import Kernel, KernelDraft, is_of_memory
from dumpfs.linux.vmcoreinfo_scan import MAX_SCAN, Candidate, find_pointers, follow_pointers, scan_memory

_MAX_CANDIDATES = 64

_Rank = tuple[bool, bool, bool, int]


def search(kernel: Kernel) -> Kernel:
    """`kernel` with the VMCOREINFO that memory holds; itself, with a problem more, when it holds none.

    The right text is the one that fits the memory it is in: the kernel it describes has the release it names, and
    lies where a processor's page tables have the kernel; an old copy and a page cached from a file fail one or the
    other. When a capture kernel runs, both kernels' fit, and the one that was handed over to it is wanted. A text of
    the dump's own that is doubted is kept where none fits better.
    """
    best: tuple[_Rank, Kernel] | None = None
    if kernel.vmcoreinfo is not None:
        best = (is_of_memory(kernel) is True, False, False, -1), kernel
    for number, candidate in enumerate(_candidates(kernel)):
        found = _try(kernel, candidate)
        fits = is_of_memory(found) is True
        is_running = kernel.phys_base is not None and kernel.phys_base == found.phys_base
        if fits and (candidate.handed_over or is_running):
            return _instead(kernel, found, candidate)
        rank = (fits, *candidate.rank)
        if best is None or rank > best[0]:
            best = (rank, _instead(kernel, found, candidate))
        if number + 1 >= _MAX_CANDIDATES:
            break
    if best is not None:
        return best[1]
    kernel = _by_tables(kernel)
    problems = tuple(p for p in kernel.problems if "VMCOREINFO" not in p)
    where = "anywhere in its memory"
    if kernel.image.stored.count() * kernel.image.meta.block_size > MAX_SCAN:
        where = f"in the first {MAX_SCAN >> 30} GiB of its memory"
    return replace(kernel, problems=(*problems, f"no VMCOREINFO in the dump, nor {where}"))


def _instead(kernel: Kernel, found: Kernel, candidate: Candidate) -> Kernel:
    """`found`, which says what it is used instead of."""
    if kernel.vmcoreinfo is None or found.vmcoreinfo is None:
        return found
    if kernel.vmcoreinfo.raw == found.vmcoreinfo.raw:  # memory repeats it: there is no better one
        return replace(kernel, doubt="")
    doubt = f"VMCOREINFO of {kernel.origins['vmcoreinfo']} {kernel.doubt}: the one in memory at "
    return replace(found, problems=(f"{doubt}{candidate.paddr:#x} is used instead", *found.problems))


def _by_tables(kernel: Kernel) -> Kernel:
    """`kernel` with page tables found by a search; itself where it has some, or none are found."""
    if kernel.arch is None or kernel.arch.find_root is None or (kernel.space and kernel.space.tables):
        return kernel
    root = kernel.arch.find_root(kernel.phys)
    if root is None:
        return kernel
    return KernelDraft(kernel.image, kernel.options, kernel.phys.cache, kernel.notes, root=root).build()


def _try(kernel: Kernel, candidate: Candidate) -> Kernel:
    draft = KernelDraft(kernel.image, kernel.options, kernel.phys.cache, kernel.notes)
    how = "what was handed to the capture kernel" if candidate.handed_over else "a search of memory"
    draft.set_info(candidate.text, f"{how}, found at physical {candidate.paddr:#x}")
    return draft.build()


def _candidates(kernel: Kernel) -> Iterator[Candidate]:
    """Texts in memory, the quick way first."""
    if kernel.text is not None and kernel.page_offset is not None and kernel.word_size == 8:
        _, paddr, size = kernel.text
        pointers = find_pointers(kernel.phys, paddr, size, kernel.page_offset, kernel.byteorder)
        yield from follow_pointers(kernel.phys, pointers)
    yield from scan_memory(kernel.image)
