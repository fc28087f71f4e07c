"""The C library's treatment of freed memory."""

import platform
import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource
from dumpfs.memory.allocator import keep_freed_memory
{call}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(100):
        pages = [bytes(4096) for _ in range(256)]
        b"".join(pages)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def faults(call: str) -> int:
    text = COUNT_FAULTS.format(call=call)
    return int(subprocess.run([sys.executable, "-c", text], capture_output=True, check=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives freed memory back so eagerly")
def test_buffers_of_a_megabyte_are_not_faulted_in_again_and_again():
    assert faults("keep_freed_memory()") < 100
