"""Loading pyfuse3 without what it loads and a mount has no use for."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Later(ModuleType):
    """Stands for a module until something of it is used; then that is loaded."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # whatever is in there
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)


def load_pyfuse3() -> None:
    """Import pyfuse3, but neither trio nor importlib.metadata unless something needs them.

    It imports trio for its default event loop, for which `EventLoop` stands, and the other, with 20 modules about mail,
    to learn its own version. Together they take 0.12 s of CPU and as long again where their 180 files must be read.
    """
    metadata = _Later("importlib.metadata")
    vars(metadata).update(version=_version, PackageNotFoundError=LookupError, __path__=[])  # all that a version asks of
    added = {module.__name__: module for module in (_Later("trio"), metadata) if module.__name__ not in sys.modules}
    sys.modules.update(added)
    try:
        import pyfuse3  # noqa: F401
    finally:
        for name, module in added.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def _version(name: str) -> str:
    """The version of no package is known; pyfuse3 takes that calmly."""
    raise LookupError(name)
