"""Loading pyfuse3 without what it loads and a mount has no use for."""

from __future__ import annotations

import sys
from types import ModuleType


def load_pyfuse3() -> None:
    """Import pyfuse3, but neither trio nor importlib.metadata unless something else has.

    It imports trio for its default event loop, for which `EventLoop` stands, and the other, with 20 modules about mail,
    to learn its own version. Together they take 0.12 s of CPU and as long again where their 180 files must be read.
    """
    stand_ins = {"trio": ModuleType("trio"), "importlib.metadata": _nameless()}
    added = {name: module for name, module in stand_ins.items() if name not in sys.modules}
    sys.modules.update(added)
    try:
        import pyfuse3  # noqa: F401
    finally:
        for name in added:
            del sys.modules[name]


def _nameless() -> ModuleType:
    """An importlib.metadata in which no package has a version; pyfuse3 takes that calmly."""
    module = ModuleType("importlib.metadata")

    def version(name: str) -> str:
        raise LookupError(name)

    vars(module).update(version=version, PackageNotFoundError=LookupError)
    return module
