"""Dump formats: facts about stored pages, one module or package per format.

A format knows nothing of virtual addresses and of what a reader should get for a page that is not there.
"""

__all__ = ["find_files", "open_image"]

from dumpfs.formats.detect import find_files, open_image
