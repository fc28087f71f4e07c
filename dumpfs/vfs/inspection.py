"""The kernel's own symbols, types and tasks, for every view of one dump.

Finding them out takes some tenths of a second, or much longer when VMCOREINFO must be searched for. Under a mount a
helper process does it once (`build`) and every worker takes its bytes (`adopt`); without a mount it happens when first
asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Lock
from typing import TYPE_CHECKING

from dumpfs.errors import DumpfsError

if TYPE_CHECKING:
    from dumpfs.linux.debugfile import DebugFile
    from dumpfs.linux.inspect import Inspector
    from dumpfs.linux.kernel import Kernel
    from dumpfs.vfs.context import Dump


_KEPT_TEXTS = 64
"""Of tasks; some kilobytes each."""


_SEARCHED_BYTES = 512 << 20
"""Stored memory that is searched for VMCOREINFO in two or three seconds."""
_SEARCHED_PLAIN_BYTES = 2 << 30
"""Likewise of formats that do not compress."""


class Inspection:
    """What is known of the kernel inside one dump.

    Args:
        dump: the dump.
    """

    def __init__(self, dump: Dump) -> None:
        self._dump = dump
        self._lock = Lock()
        self._inspector: Inspector | None = None
        self._debug: DebugFile | None = None
        self._texts: dict[int, bytes] = {}
        self._notices: tuple[str, ...] = ()
        self.kernel_problems: tuple[str, ...] | None = None
        """`Kernel.problems` of the kernel that was looked into, which may be better understood than the dump's own."""
        self.ready = False
        """Whether asking is quick by now."""

    def open_debug_file(self) -> None:
        """Open the user's vmlinux, which a mount may hide later.

        Raises:
            SourceError, UnknownFormatError: it cannot be opened.
        """
        from dumpfs.linux.debugfile import DebugFile

        if self._dump.options.vmlinux is not None and self._debug is None:
            self._debug = DebugFile(self._dump.options.vmlinux)

    @property
    def inspector(self) -> Inspector:
        """Asks the kernel; the first question of each kind may take its time unless `ready`.

        Raises:
            DumpfsError: the kernel is unknown.
        """
        with self._lock:
            if self._inspector is None:
                self._inspector = self._make(self._dump.need_kernel().deep)
            return self._inspector

    def _make(self, kernel: Kernel) -> Inspector:
        from dumpfs.linux.inspect import Inspector  # with all that reads a kernel; only to look into it

        self.open_debug_file()
        return Inspector(kernel, self._debug)

    @property
    def is_quick(self) -> bool:
        """Whether finding everything out takes a few seconds at most: no large dump must be searched first."""
        kernel = self._dump.kernel
        if kernel is None or (kernel.vmcoreinfo is not None and not kernel.doubt):
            return True
        most = _SEARCHED_BYTES if self._dump.image.meta.format == "kdump" else _SEARCHED_PLAIN_BYTES
        return self._dump.searched_bytes <= most

    def missing(self) -> str | None:
        """Why nothing can be told of the inside of this dump's kernel, or None; cheap, and so not the last word."""
        kernel = self._dump.kernel
        if kernel is None:
            return str(self._dump.kernel_error)
        is_told = kernel.vmcoreinfo is not None and not kernel.doubt
        if kernel.arch is None and (is_told or not kernel.may_be_searched):
            machine = kernel.machine or kernel.image.meta.machine or "unknown"
            return f"machine {machine}: kernel memory of this architecture cannot be translated"
        if kernel.space is None and is_told:
            return "; ".join(kernel.problems) or f"the memory layout of a {kernel.machine} kernel is unknown"
        return None

    def notices(self) -> Iterator[str]:
        """What could not be found out: of all processes of a mount, else as far as this one has asked."""
        if self.ready:
            yield from self._notices
        elif self._inspector is not None:
            yield from dict.fromkeys(self._inspector.notices())

    def text(self, ino: int, render: Callable[[Inspector], bytes]) -> bytes:
        """A text of a node, rendered unless it was lately: attributes and content are asked for one after the other.

        Raises:
            DumpfsError: as `render`.
        """
        text = self._texts.get(ino)
        if text is None:
            text = render(self.inspector)
            if len(self._texts) >= _KEPT_TEXTS:
                self._texts.clear()
            self._texts[ino] = text
        return text

    def build(self) -> bytes:
        """Everything found out, for `adopt`.

        Raises:
            DumpfsError: the kernel is unknown.
        """
        from dumpfs.linux.frozen import freeze
        from dumpfs.linux.procfs import warm_up

        return freeze(self.inspector, warm_up, self._dump.tree.find_absent)

    def adopt(self, data: bytes | memoryview) -> None:
        """Take what `build` found out, here or in another process."""
        from dumpfs.linux.frozen import frozen_absent, frozen_kernel_problems, frozen_vmcoreinfo, thaw

        if self.ready:
            return
        kernel = self._dump.need_kernel()
        if kernel.vmcoreinfo is None or kernel.doubt:
            kernel = self._searched(kernel, frozen_vmcoreinfo(data))
        inspector = self._make(kernel)
        thaw(inspector, data)
        with self._lock:
            self._inspector = inspector
            self._notices = tuple(dict.fromkeys(inspector.notices()))
            self.kernel_problems = frozen_kernel_problems(data)
        self._dump.tree.settle(frozen_absent(data))
        self.ready = True

    def _searched(self, kernel: Kernel, text: bytes | None) -> Kernel:
        """The kernel that another process found by searching memory for VMCOREINFO; searching again is saved."""
        if text is None:
            return kernel
        from dumpfs.linux.kernel import find_kernel

        options = kernel.options
        try:
            return find_kernel(
                kernel.image,
                vmcoreinfo=text,
                vmlinux=options.vmlinux,
                phys_base=options.phys_base,
                kaslr=options.kaslr,
                cache=self._dump.cache,
            )
        except DumpfsError:
            return kernel
