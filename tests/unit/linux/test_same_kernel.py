"""A vmlinux or VMCOREINFO of another kernel is refused, whoever asks."""

from __future__ import annotations

from pathlib import Path

import pytest

from dumpfs.errors import UnknownFormatError, UsageError
from dumpfs.linux.kernel import find_kernel
from dumpfs.linux.same_kernel import match_vmlinux
from tests.unit.arch.test_layout import IMAGE, UTS, X86, put_uts
from tests.unit.linux.test_identity import build_vmlinux, gnu_note

ID, OTHER = bytes(range(20)), bytes(range(1, 21))
LOG = {"SYMBOL(prb)": "ffffffff92480000"}


def a_dump() -> X86:
    x86 = X86()
    x86.guest.text = x86.info(**{"BUILD-ID": ID.hex()}, **LOG)
    return x86


def a_vmlinux(tmp_path: Path, build_id: bytes, banner: bytes = b"Linux version 6.1.0-test (me) (gcc) #1") -> str:
    path = tmp_path / "vmlinux"
    path.write_bytes(build_vmlinux(gnu_note(build_id), banner + b"\n\0"))
    return str(path)


def test_own_vmlinux_is_taken(tmp_path):
    kernel = find_kernel(a_dump().guest, vmlinux=a_vmlinux(tmp_path, ID))
    assert kernel.release == "6.1.0-test"
    assert match_vmlinux(kernel, a_vmlinux(tmp_path, ID)).matches


def test_vmlinux_of_another_kernel_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is not this kernel's vmlinux: its build-id is 0102") as info:
        find_kernel(a_dump().guest, vmlinux=a_vmlinux(tmp_path, OTHER, b"Linux version 6.1.0-other (me) (gcc) #1"))
    assert info.value.hint == f"the vmlinux of 6.1.0-test with build-id {ID.hex()} is wanted"


def test_a_garbled_build_id_is_forgiven_where_the_kernels_name_is_the_same(tmp_path):
    assert find_kernel(a_dump().guest, vmlinux=a_vmlinux(tmp_path, OTHER)).release == "6.1.0-test"


def test_a_compressed_kernel_is_told_from_a_vmlinux(tmp_path):
    path = tmp_path / "vmlinuz"
    path.write_bytes(b"MZ" + bytes(1000))
    with pytest.raises(UnknownFormatError) as info:
        find_kernel(a_dump().guest, vmlinux=str(path))
    assert "vmlinuz" in (info.value.hint or "")


def test_vmcoreinfo_of_another_kernel_is_refused():
    x86 = a_dump()
    given = x86.info(OSRELEASE="5.10.0-other", **LOG)
    with pytest.raises(UsageError, match=r"is of another kernel: 5.10.0-other; the dump is of 6.1.0-test"):
        find_kernel(x86.guest, vmcoreinfo=given)
    x86.guest.lost_pages.add((IMAGE + UTS) // 4096)  # then it is the dump's own word
    with pytest.raises(UsageError, match=r"is of another kernel: 5.10.0-other; the dump is of 6.1.0-test"):
        find_kernel(x86.guest, vmcoreinfo=given)


def test_vmcoreinfo_of_a_second_kernel_in_memory_is_taken():
    x86 = a_dump()
    second = X86(physical=2 << 20, text=0xFFFFFFFF95600000)
    x86.guest.memory[2 << 20 : 3 << 20] = second.guest.memory[2 << 20 : 3 << 20]
    put_uts(x86.guest, (2 << 20) + UTS, "5.10.0-capture")
    kernel = find_kernel(x86.guest, vmcoreinfo=second.info(OSRELEASE="5.10.0-capture", **LOG))
    assert kernel.uts.release == "5.10.0-capture"
