"""Whether a vmlinux belongs to a dumped kernel."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dumpfs.errors import DumpfsError, FormatError, SourceError, TranslationError, UnknownFormatError
from dumpfs.linux.identity import VmlinuxIdentity, match_kernel, read_identity, read_running_build_id
from dumpfs.vmcoreinfo import Vmcoreinfo

ID = bytes(range(20))
OTHER = bytes(range(100, 120))
BANNER = "Linux version 6.1.0-56-amd64 (who@where) (gcc 12.2.0) #1 SMP Debian 6.1.192-2"
NOTES_VADDR = 0xFFFFFFFF81974F9C


def gnu_note(desc: bytes, order: str = "<") -> bytes:
    return struct.pack(order + "3I", 4, len(desc), 3) + b"GNU\0" + desc


def build_vmlinux(notes: bytes = gnu_note(ID), rodata: bytes = BANNER.encode() + b"\n\0", order: str = "<") -> bytes:
    """An ELF64 file with .notes and .rodata."""
    names = b"\0.notes\0.rodata\0.shstrtab\0"
    parts = [notes, rodata, names]
    offsets = [64 + sum(map(len, parts[:i])) for i in range(3)]
    shoff = 64 + sum(map(len, parts))
    ident = b"\x7fELF" + bytes((2, 1 if order == "<" else 2, 1)) + bytes(9)
    ehdr = ident + struct.pack(order + "HHIQQQIHHHHHH", 2, 62, 1, 0, 0, shoff, 0, 64, 56, 0, 64, 4, 3)

    def section(name: bytes, kind: int, vaddr: int, i: int) -> bytes:
        return struct.pack(
            order + "IIQQQQIIQQ", names.index(name), kind, 2, vaddr, offsets[i], len(parts[i]), 0, 0, 4, 0
        )

    table = bytes(64) + section(b".notes", 7, NOTES_VADDR, 0) + section(b".rodata", 1, 0, 1)
    return ehdr + b"".join(parts) + table + section(b".shstrtab", 3, 0, 2)


def identity(tmp_path: Path, **parts: object) -> VmlinuxIdentity:
    path = tmp_path / "vmlinux"
    path.write_bytes(build_vmlinux(**parts))  # type: ignore[arg-type]
    return read_identity(str(path))


def info(build_id: bytes | str = "", release: str = "6.1.0-56-amd64") -> Vmcoreinfo:
    text = build_id.hex() if isinstance(build_id, bytes) else build_id
    return Vmcoreinfo(f"OSRELEASE={release}\n{f'BUILD-ID={text}' if text else ''}\n".encode())


@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
def test_build_id_and_banner_are_read(tmp_path: Path, order: str) -> None:
    found = identity(tmp_path, notes=gnu_note(ID, order), order=order)
    assert (found.build_id, found.build_id_vaddr) == (ID.hex(), NOTES_VADDR + 16)
    assert (found.banner, found.release) == (BANNER, "6.1.0-56-amd64")


def test_build_id_behind_another_note_is_found(tmp_path: Path) -> None:
    xen = struct.pack("<3I", 4, 4, 6) + b"Xen\0" + b"2.6\0"
    found = identity(tmp_path, notes=xen + gnu_note(ID))
    assert (found.build_id, found.build_id_vaddr) == (ID.hex(), NOTES_VADDR + len(xen) + 16)


def test_format_of_proc_version_is_no_banner(tmp_path: Path) -> None:
    found = identity(
        tmp_path, rodata=b"Linux version %s (a) (b)\0Linux version 6.1.0 (c) #\0" + BANNER.encode() + b"\0"
    )
    assert found.banners == ("Linux version 6.1.0 (c) #", BANNER)
    assert found.banner == BANNER


def test_vmlinux_without_either_is_read(tmp_path: Path) -> None:
    found = identity(tmp_path, notes=b"", rodata=b"")
    assert (found.build_id, found.banner, found.release) == ("", "", "")


def test_compressed_kernel_is_refused_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "vmlinuz").write_bytes(b"MZ" + bytes(1000))
    with pytest.raises(UnknownFormatError, match="is not an ELF file") as caught:
        read_identity(str(tmp_path / "vmlinuz"))
    assert caught.value.hint is not None
    assert "vmlinuz" in caught.value.hint


def test_missing_file_is_a_source_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="No such file"):
        read_identity(str(tmp_path / "nothing"))


@given(st.integers(0, len(build_vmlinux()) - 1), st.integers(0, 255))
def test_broken_vmlinux_gives_a_clean_error_or_an_answer(
    tmp_path_factory: pytest.TempPathFactory, offset: int, value: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "broken-vmlinux"
    data = bytearray(build_vmlinux())
    data[offset] = value
    path.write_bytes(data)
    try:
        read_identity(str(path))
    except DumpfsError:
        pass


@given(st.integers(4, len(build_vmlinux()) - 1))
def test_vmlinux_cut_anywhere_gives_a_clean_error_or_an_answer(
    tmp_path_factory: pytest.TempPathFactory, size: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "cut-vmlinux"
    path.write_bytes(build_vmlinux()[:size])
    try:
        read_identity(str(path))
    except DumpfsError:
        pass


def test_too_many_sections_are_refused(tmp_path: Path) -> None:
    data = bytearray(build_vmlinux())
    struct.pack_into("<H", data, 60, 0xFFFF)
    (tmp_path / "vmlinux").write_bytes(data)
    with pytest.raises(FormatError):
        read_identity(str(tmp_path / "vmlinux"))


def test_running_build_id_is_read_at_the_displaced_address(tmp_path: Path) -> None:
    memory = {NOTES_VADDR + 0x2000000: gnu_note(OTHER)}

    def read(vaddr: int, size: int) -> bytes:
        return memory[vaddr][:size]

    assert read_running_build_id(identity(tmp_path), 0x2000000, read) == OTHER.hex()


def test_memory_without_a_note_has_no_build_id(tmp_path: Path) -> None:
    assert read_running_build_id(identity(tmp_path), 0, lambda _, size: b"\x90" * size) == ""


def test_memory_that_is_not_mapped_has_no_build_id(tmp_path: Path) -> None:
    def read(vaddr: int, size: int) -> bytes:
        raise TranslationError(vaddr, "no entry")

    assert read_running_build_id(identity(tmp_path), 0, read) == ""


def test_equal_build_ids_match(tmp_path: Path) -> None:
    match = match_kernel(identity(tmp_path), info(ID), "", "")
    assert (match.matches, match.method) == (True, "build-id")
    assert match.sentence.endswith(f"vmlinux is this kernel's vmlinux: both have build-id {ID.hex()}")


def test_other_build_id_does_not_match(tmp_path: Path) -> None:
    match = match_kernel(identity(tmp_path), info(OTHER), "", BANNER + " of another build")
    assert (match.matches, match.method) == (False, "build-id")
    assert match.sentence.endswith(
        f"is not this kernel's vmlinux: its build-id is {ID.hex()}, the dump's is {OTHER.hex()}"
    )


def test_build_id_in_memory_beats_a_garbled_one_in_vmcoreinfo(tmp_path: Path) -> None:
    match = match_kernel(identity(tmp_path), info(OTHER), ID.hex(), "")
    assert (match.matches, match.method, match.dump_build_id) == (True, "build-id", ID.hex())


def test_other_build_id_in_memory_does_not_match_without_vmcoreinfo(tmp_path: Path) -> None:
    match = match_kernel(identity(tmp_path), None, OTHER.hex(), BANNER)
    assert (match.matches, match.method, match.dump_build_id) == (False, "build-id", OTHER.hex())


@pytest.mark.parametrize(("banner", "matches"), [(BANNER, True), (BANNER.replace("#1", "#2"), False)])
def test_banner_decides_without_build_id(tmp_path: Path, banner: str, matches: bool) -> None:
    match = match_kernel(identity(tmp_path), info(), "", banner)
    assert (match.matches, match.method) == (matches, "banner")


def test_other_release_does_not_match(tmp_path: Path) -> None:
    match = match_kernel(identity(tmp_path), info(release="5.10.0"), "", "")
    assert (match.matches, match.method) == (False, "release")


def test_same_release_proves_nothing(tmp_path: Path) -> None:
    match = match_kernel(identity(tmp_path), info(), "", "")
    assert (match.matches, match.method) == (None, "release")
    assert "may or may not be this kernel's vmlinux" in match.sentence


def test_nothing_in_common_proves_nothing(tmp_path: Path) -> None:
    match = match_kernel(identity(tmp_path, notes=b"", rodata=b""), None, "", "")
    assert (match.matches, match.method) == (None, "")
