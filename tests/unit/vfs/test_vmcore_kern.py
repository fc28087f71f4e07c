"""Only the kernel's own pages have content."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dumpfs.errors import AbsentPageError, ExcludedPageError, PageError, ViewError
from dumpfs.memory.physical import HolePolicy, PhysMemory
from dumpfs.vfs.views import vmcore_kern
from dumpfs.vfs.views.vmcore_kern import BLOCK_PFNS, KernelMemory, VmcoreKernFile
from dumpfs.vmcoreinfo import Vmcoreinfo
from tests.unit.vfs.fakes import PAGE, C, FakeImage, L, S, fake_dump, fake_kernel, page_bytes


def bits(pfns: set[int]) -> dict[int, bytes]:
    """`pfns` as bits by block."""
    found: dict[int, bytearray] = {}
    for pfn in pfns:
        block, inside = divmod(pfn, BLOCK_PFNS)
        found.setdefault(block, bytearray(BLOCK_PFNS // 8))[inside >> 3] |= 1 << (inside & 7)
    return {block: bytes(mask) for block, mask in found.items()}


def memory(states: dict[int, int], kept: set[int], policy: HolePolicy = HolePolicy.ZERO) -> KernelMemory:
    return KernelMemory(PhysMemory(FakeImage(states), PAGE, policy), bits(kept))


@given(st.sets(st.integers(0, 40)), st.integers(0, 40 * PAGE), st.integers(0, 20 * PAGE))
def test_pages_are_kept_or_zero(kept: set[int], offset: int, size: int):
    reader = memory(dict.fromkeys(range(64), S), kept)
    model = b"".join(page_bytes(p) if p in kept else bytes(PAGE) for p in range(64))
    assert reader.read(offset, size) == model[offset : offset + size]


def test_a_read_may_cross_blocks():
    first = BLOCK_PFNS - 1
    reader = memory({first: S, first + 1: S}, {first, first + 1})
    assert reader.read(first * PAGE, 2 * PAGE) == page_bytes(first) + page_bytes(first + 1)
    reader = memory({first: S, first + 1: S}, {first + 1})
    assert reader.read(first * PAGE, 2 * PAGE) == bytes(PAGE) + page_bytes(first + 1)


def test_a_page_left_out_is_not_even_read():
    reader = memory({0: S, 1: C, 2: L}, {0})
    assert reader.read(PAGE, 2 * PAGE) == bytes(2 * PAGE)


def test_a_kept_page_that_is_lost_is_never_zeros():
    with pytest.raises(PageError):
        memory({0: S, 1: L}, {0, 1}).read(0, 2 * PAGE)


def test_holes_are_errors_when_asked_for():
    reader = memory({0: S, 1: S}, {0}, HolePolicy.ERROR)
    assert reader.read(0, PAGE) == page_bytes(0)
    with pytest.raises(ExcludedPageError):
        reader.read(0, 2 * PAGE)
    with pytest.raises(AbsentPageError):
        reader.read(2 * PAGE, 1)


class TestFile:
    @pytest.fixture
    def dump(self, monkeypatch):
        monkeypatch.setattr(vmcore_kern, "find_kernel_pages", lambda kernel, stored: bits({1, 3}))
        kernel = fake_kernel(vmcoreinfo=Vmcoreinfo(b"OSRELEASE=6.1\n"))
        image = FakeImage(dict.fromkeys(range(6), S), vmcoreinfo=b"OSRELEASE=6.1\n")
        return fake_dump(image, kernel)

    def test_it_has_the_layout_of_the_whole_core(self, dump):
        kern, whole = dump.tree.lookup_path("vmcore-kern"), dump.tree.lookup_path("vmcore")
        assert kern.size() == whole.size()
        ours, theirs = kern.read(0, kern.size()), whole.read(0, whole.size())
        start = len(whole.plan.headers)
        assert ours[:start] == theirs[:start]
        for pfn in range(6):
            page = ours[start + pfn * PAGE :][:PAGE]
            assert page == (page_bytes(pfn) if pfn in (1, 3) else bytes(PAGE))

    def test_blocks_on_disk_are_those_of_kept_pages(self, dump):
        node = dump.tree.lookup_path("vmcore-kern")
        node.size()
        assert node.stored_bytes() == 2 * PAGE

    def test_it_travels_between_processes(self, dump):
        built = dump.tree.lookup_path("vmcore-kern")
        adopted = VmcoreKernFile(built.ino, dump)
        assert not adopted.ready
        adopted.adopt(memoryview(built.build()))
        assert adopted.ready
        assert adopted.read(0, 1 << 20) == built.read(0, 1 << 20)

    def test_pages_that_cannot_be_told_apart_are_an_error_with_a_hint(self, dump, monkeypatch):
        monkeypatch.undo()
        node = dump.tree.lookup_path("vmcore-kern")
        with pytest.raises(ViewError, match="vmcore-kern: ") as caught:
            node.size()
        assert "vmlinux=FILE" in caught.value.hint
        assert node.ino in dump.failed


def test_blocks_without_stored_pages_are_passed_over():
    image = FakeImage({0: S, 3 * BLOCK_PFNS + 5: S})
    assert list(vmcore_kern._blocks(image.stored)) == [0, 3]
