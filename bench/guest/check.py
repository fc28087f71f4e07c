"""check.py VMCORE KDUMP...: describe the vmcore's pages, and let libkdumpfile compare the kdumps with it.

Every page of every kdump is read and must equal the vmcore's. Prints what a benchmark wants to know.
"""

import os
import struct
import sys
import zlib

import kdumpfile  # type: ignore[import-not-found]  # Debian's python3-libkdumpfile

PAGE = 4096
RUN = 64  # pages read at once
SAMPLE = 64  # every so many pages are compressed, to tell what content this is
START_KERNEL_MAP = 0xFFFFFFFF80000000  # this PT_LOAD repeats pages that another one has
PT_LOAD = 1
MIN_CONTENT = 500 << 20  # bytes of pages that are not zero; less is no benchmark


def read_segments(path: str) -> list[tuple[int, int, int]]:
    """(file offset, first pfn, number of whole pages) of each PT_LOAD, the kernel text mapping left out."""
    segments = []
    with open(path, "rb") as file:
        head = file.read(1 << 16)
    (phoff,) = struct.unpack_from("<Q", head, 32)
    (phnum,) = struct.unpack_from("<H", head, 56)
    for i in range(phnum):
        kind, _, offset, vaddr, paddr, _, memsz, _ = struct.unpack_from("<IIQQQQQQ", head, phoff + i * 56)
        if kind == PT_LOAD and vaddr < START_KERNEL_MAP:
            # A range of RAM need not begin and end at a page boundary: leave partial pages out.
            first, stop = -(-paddr // PAGE), (paddr + memsz) // PAGE
            segments.append((offset + first * PAGE - paddr, first, stop - first))
    return segments


def describe_content(path: str) -> None:
    """Print how many pages there are, how many are zero, and how well a sample of the others compresses."""
    pages = zero = 0
    ratios = []
    blank = bytes(PAGE)
    with open(path, "rb") as file:
        for offset, _, npages in read_segments(path):
            file.seek(offset)
            for _ in range(npages):
                page = file.read(PAGE)
                pages += 1
                if page == blank:
                    zero += 1
                elif pages % SAMPLE == 0:
                    ratios.append(len(zlib.compress(page, 1)) / PAGE)
    print(f"pages {pages}, zero {zero} ({zero / pages:.1%}), other content {(pages - zero) * PAGE} bytes")
    ratios.sort()
    tenths = " ".join(f"{ratios[len(ratios) * i // 10]:.2f}" for i in range(1, 10))
    print(f"size of compressed non-zero pages, zlib level 1, deciles: {tenths}")
    if (pages - zero) * PAGE < MIN_CONTENT:
        sys.exit(f"bench/guest: {path}: too little content")


def count_stored(path: str) -> int:
    """Page descriptors of a kdump: bits set in the 2nd bitmap, which is the later half of the bitmap blocks."""
    with open(path, "rb") as file:
        head = file.read(PAGE)
        # disk_dump_header: signature, header_version, utsname, padding, timestamp, status, then these.
        block_size, sub_hdr_size, bitmap_blocks = struct.unpack_from("<3I", head, 8 + 4 + 6 * 65 + 6 + 16 + 4)
        half = bitmap_blocks // 2 * block_size
        file.seek((1 + sub_hdr_size) * block_size + half)
        return int.from_bytes(file.read(half), "little").bit_count()


def compare(path: str, vmcore: str) -> None:
    """Read all pages of `path` by libkdumpfile; exit at the first difference from `vmcore`."""
    context = kdumpfile.kdumpfile(path)
    with open(vmcore, "rb") as file:
        for offset, first, npages in read_segments(vmcore):
            for at in range(0, npages, RUN):
                size = min(RUN, npages - at) * PAGE
                file.seek(offset + at * PAGE)
                paddr = (first + at) * PAGE
                if bytes(context.read(kdumpfile.KDUMP_MACHPHYSADDR, paddr, size)) != file.read(size):
                    sys.exit(f"bench/guest: {path}: differs from {vmcore} within {size} bytes from paddr {paddr:#x}")
    print(f"{path}: {os.path.getsize(path)} bytes, {count_stored(path)} stored pages, same as {vmcore}")


def main(vmcore: str, *kdumps: str) -> None:
    """Print the description, or exit with what is wrong."""
    print(f"{vmcore}: {os.path.getsize(vmcore)} bytes")
    describe_content(vmcore)
    for kdump in kdumps:
        compare(kdump, vmcore)


main(*sys.argv[1:])
