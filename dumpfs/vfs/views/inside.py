"""What views of the kernel's inside share: files rendered from what one helper process finds out for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dumpfs.vfs.context import Dump
from dumpfs.vfs.node import Node
from dumpfs.vfs.views.base import BuiltFile, RenderedFile

if TYPE_CHECKING:
    from dumpfs.linux.inspect import Inspector


def preparer(node: Node, dump: Dump) -> Node:
    """The node that prepares every view of the kernel's inside: /tasks, or `node` itself where that is missing."""
    return dump.tree.made("tasks") or node


@dataclass(slots=True)
class InsideFile(RenderedFile):
    """A small text that is quick to make once the kernel is known from inside."""

    INSIDE: ClassVar[bool] = True

    @classmethod
    def missing(cls, dump: Dump) -> str | None:
        """See `tree.ViewClass`."""
        return dump.inspection.missing()

    @property
    def inspector(self) -> Inspector:
        """Asks the kernel; errors as `Inspection.inspector`."""
        return self.dump.inspection.inspector

    @property
    def ready(self) -> bool:
        """See `Node.ready`."""
        return self.content is not None or self.dump.inspection.ready

    def prepared_by(self) -> Node:
        """See `Node.prepared_by`."""
        return preparer(self, self.dump)

    def build(self) -> bytes | None:
        """See `Node.build`."""
        return self.dump.inspection.build()

    def adopt(self, data: memoryview | bytes) -> None:
        """See `Node.adopt`."""
        self.dump.inspection.adopt(data)

    def check_open(self) -> None:
        """See `FileNode.check_open`: what cannot be rendered cannot be opened."""
        self._bytes()


@dataclass(slots=True)
class InsideBuiltFile(BuiltFile):
    """A large content of the kernel's inside, made in a helper process of its own."""

    INSIDE: ClassVar[bool] = True

    @classmethod
    def missing(cls, dump: Dump) -> str | None:
        """See `tree.ViewClass`."""
        return dump.inspection.missing()

    @property
    def inspector(self) -> Inspector:
        """Asks the kernel; errors as `Inspection.inspector`."""
        return self.dump.inspection.inspector
