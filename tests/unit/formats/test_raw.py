"""A flat image is read at physical addresses equal to its offsets."""

import pytest

from dumpfs.errors import UnknownFormatError
from dumpfs.formats.raw import open_raw
from dumpfs.sources.local import MemorySource
from dumpfs.units import PageState


def test_offset_is_physical_address():
    image = open_raw([MemorySource(b"a" * 4096 + b"b" * 4096)])
    assert image.read_run(0, 3) == (b"a" * 4096 + b"b" * 4096 + bytes(4096), bytes([0, 0, PageState.ABSENT]))
    assert image.meta.max_pfn == 2


def test_last_page_may_be_partial():
    image = open_raw([MemorySource(b"a" * 5000)])
    assert image.partial == {1: (0, 904)}
    assert image.state(1) is PageState.PARTIAL


def test_empty_file_is_refused():
    with pytest.raises(UnknownFormatError, match="empty"):
        open_raw([MemorySource(b"")])
