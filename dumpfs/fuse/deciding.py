"""Waiting, not too long, for what decides what a directory lists: a listing has what can be read, and nothing else.

Finding out what a dump offers takes some tenths of a second, by a helper process, once for a mount. It takes longer
where memory must be searched for VMCOREINFO, or storage is slow; then whatever the dump may offer is listed, and names
are not kept by the kernel until it is known.
"""

from __future__ import annotations

import time
from contextlib import suppress

from dumpfs.fuse.publish import BuildError, Publisher
from dumpfs.vfs.node import Node

_PATIENCE_SECONDS = 5.0
"""How long a process waits, in all: some times what finding out takes at most, if nothing must be searched for."""


class Decider:
    """What one worker knows of that. Used from its one thread.

    Args:
        publisher: has the helper started, and tells what it found.
    """

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._patient_until = 0.0

    async def wait(self, node: Node) -> None:
        """Wait a moment for what decides what a node lists or tells; see `Node.decided_by`."""
        deciding = node.decided_by()
        if deciding is not None and node.patient:
            now = time.monotonic()
            self._patient_until = self._patient_until or now + _PATIENCE_SECONDS
            with suppress(BuildError):  # that decides, too
                await self._publisher.prepare(deciding, max(self._patient_until - now, 0))
        node.decide(self._publisher.failures())

    def is_known(self, node: Node) -> bool:
        """Whether it is decided by now; nothing is begun, nor waited for."""
        deciding = node.decided_by()
        if deciding is None:
            return True
        try:
            self._publisher.settled(deciding)
        except BuildError:
            node.decide(self._publisher.failures())
        return node.decided_by() is None
