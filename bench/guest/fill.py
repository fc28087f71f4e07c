"""What the guest's init does in Python: load the capture kernel, or fill a heap and keep it.

fill.py load-crash-kernel | heap SEED [exit]
"""

import ast
import ctypes
import glob
import json
import os
import random
import sys
import time
import zlib

SYS_KEXEC_FILE_LOAD = 320  # x86-64 system call number
KEXEC_FILE_ON_CRASH = 2
# irqpoll and reset_devices are for devices that the panicked kernel left running.
CAPTURE_CMDLINE = b"console=ttyS0 loglevel=4 nr_cpus=1 irqpoll reset_devices panic=-1\0"

RECORDS = 60_000
INCOMPRESSIBLE = 8 << 20  # bytes, as of keys, media and compressed files
SPARSE = 16 << 20  # bytes, one in 8 KiB set: every second page is zero


def load_crash_kernel() -> None:
    """Load the capture kernel with the system call itself, which spares the guest kexec-tools and its libraries."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/boot/vmlinuz", "rb") as kernel, open("/boot/initrd", "rb") as initrd:
        failed = libc.syscall(
            ctypes.c_long(SYS_KEXEC_FILE_LOAD),
            ctypes.c_long(kernel.fileno()),
            ctypes.c_long(initrd.fileno()),
            ctypes.c_ulong(len(CAPTURE_CMDLINE)),
            ctypes.c_char_p(CAPTURE_CMDLINE),
            ctypes.c_ulong(KEXEC_FILE_ON_CRASH),
        )
    if failed:
        raise OSError(ctypes.get_errno(), "kexec_file_load")


def fill_heap(seed: int) -> list[object]:
    """Objects as a program has them: small and linked, text, compressed data, random bytes, a sparse buffer."""
    rng = random.Random(seed)
    trees = []
    names = sorted(glob.glob("/usr/lib/python3.11/*.py"))
    first = seed * 30 % len(names)
    for name in names[first : first + 30]:
        with open(name, encoding="utf-8") as source:
            trees.append(ast.parse(source.read()))
    records = {i: {"name": f"user{i}", "value": rng.random(), "tags": [i, 2 * i, str(i)]} for i in range(RECORDS)}
    text = json.dumps(records)
    sparse = bytearray(SPARSE)
    for offset in range(0, SPARSE, 8192):
        sparse[offset] = 1 + offset // 8192 % 255
    return [trees, records, text, zlib.compress(text.encode()), rng.randbytes(INCOMPRESSIBLE), sparse]


def main(argv: list[str]) -> None:
    """Run the command of the module's docstring."""
    if argv[0] == "load-crash-kernel":
        load_crash_kernel()
        return
    heap = fill_heap(int(argv[1]))
    if argv[2:] != ["exit"]:
        open(f"/tmp/heap-{argv[1]}", "x").close()
        while heap:
            time.sleep(3600)
    os._exit(0)


main(sys.argv[1:])
