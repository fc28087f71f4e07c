"""dumpfs: read a crashed Linux kernel's dump, and mount it as files.

The library is synchronous and its objects are immutable and thread-safe; the two shells around it are
`dumpfs.fuse` (the mount) and `dumpfs.cli` (the commands). Start with `dumpfs.formats.open_image`.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
