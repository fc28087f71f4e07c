"""Bars of `dumpfs write`: what it writes, beside makedumpfile, and who opens it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from barlib import DUMPFS, Measured, Missing, bar, big, corpus, mounted, run, sha1, tool, truth
from plainreader import PAGE, Elf, Kdump, different_pages, header_differences
from writerlib import (
    CODECS,
    SECRET,
    TINY_LOG,
    TINY_RELEASE,
    TINY_VMLINUX,
    peer,
    same_file,
    scratch,
    tiny,
    write,
)

SYSTEM_PYTHON = "/usr/bin/python3"
_LIBKDUMPFILE = """
import hashlib, kdumpfile, sys
dump = kdumpfile.kdumpfile(sys.argv[1])
whole = hashlib.sha1()
for line in sys.stdin:
    whole.update(dump.read(kdumpfile.KDUMP_MACHPHYSADDR, int(line) * 4096, 4096))
print(dump.attr["linux.uts.release"], whole.hexdigest())
"""
_DRGN = """
tasks = sorted(task.pid.value_() for task in for_each_task(prog))
print(prog["init_uts_ns"].name.release.string_().decode(), len(tasks), len(get_dmesg(prog)))
"""


def same_levels(source: Path, levels: Iterable[int]) -> Measured:
    """At each level: the pages, their content and the headers, beside makedumpfile's."""
    wrong: list[str] = []
    pages = count = 0
    with scratch() as folder:
        for level in levels:
            ours, theirs = folder / "ours", folder / "theirs"
            peer("-l", "-d", level, source, theirs)
            write("-l", "-d", level, source, ours)
            a, b = Kdump(ours), Kdump(theirs)
            wrong += [f"level {level}: {text}" for text in header_differences(a, b)]
            if bad := different_pages(a, b):
                wrong.append(f"level {level}: {'other pages are stored' if bad < 0 else f'{bad} pages differ'}")
            pages, count = pages + len(a.pfns), count + 1
            ours.unlink()
            theirs.unlink()
    return Measured("; ".join(wrong[:4]) or f"{count} levels, {pages} pages and all headers equal", not wrong)


@bar("write-levels-tiny", "all 32 levels of tiny kdump-kaslr: stored pfns, contents, header fields = makedumpfile's")
def levels_tiny() -> Measured:
    return same_levels(tiny(), range(32))


@bar("write-levels-guest-0-7", "levels 0 to 7 of a Debian kernel's >= 500 MB crash: the same")
def levels_guest_0() -> Measured:
    return same_levels(big("vmcore"), range(8))


@bar("write-levels-guest-8-19", "levels 8 to 19 of it: the same")
def levels_guest_8() -> Measured:
    return same_levels(big("vmcore"), range(8, 20))


@bar("write-levels-guest-20-31", "levels 20 to 31 of it: the same")
def levels_guest_20() -> Measured:
    return same_levels(big("vmcore"), range(20, 32))


# -- who opens it ------------------------------------------------------------------------------------------------------


def crash_says(dump: Path, *commands: str) -> str:
    """What crash answers to commands on a dump of the tiny kernel."""
    text = "\n".join((*commands, "quit\n"))
    return run(tool("crash"), "-s", corpus(TINY_VMLINUX), dump, input=text.encode()).stdout.decode(errors="replace")


def drgn_says(dump: Path) -> str:
    """The kernel's name, its tasks and the length of its log, by drgn."""
    if importlib.util.find_spec("drgn") is None:
        raise Missing("drgn is not installed")
    code = "from drgn.helpers.linux import *\nfrom drgn.helpers.linux.printk import *\n" + _DRGN
    words = ["-q", "-c", dump, "-s", corpus(TINY_VMLINUX), "-e", code]
    result = run(sys.executable, "-m", "drgn", *words)
    if result.returncode:
        raise RuntimeError(result.stderr.decode()[-300:])
    return result.stdout.decode().strip()


def libkdumpfile_says(dump: Path, pfns: Iterable[int]) -> str:
    """The kernel's name and the sum of all stored pages, by libkdumpfile."""
    if run(SYSTEM_PYTHON, "-c", "import kdumpfile").returncode:
        raise Missing("python3-libkdumpfile is not installed")
    text = "".join(f"{pfn}\n" for pfn in pfns)
    result = run(SYSTEM_PYTHON, "-c", _LIBKDUMPFILE, dump, input=text.encode())
    if result.returncode:
        raise RuntimeError(result.stderr.decode()[-300:])
    return result.stdout.decode().strip()


@bar("write-readers", "crash, drgn and libkdumpfile read every codec's level-31 output as they read makedumpfile's")
def readers() -> Measured:
    wrong: list[str] = []
    with scratch() as folder:
        peer("-l", "-d", 31, tiny(), folder / "theirs")
        theirs = Kdump(folder / "theirs")
        whole = sha1(b"".join(page or b"" for _, page in theirs.pages()))
        commands = ("sys | grep -v DUMPFILE", "bt", "log")
        said = crash_says(folder / "theirs", *commands)
        if TINY_RELEASE not in said or "sysrq" not in said:
            raise RuntimeError(f"crash cannot judge: {said[-300:]}")
        drgn = drgn_says(folder / "theirs")
        for name, option in CODECS.items():
            ours = folder / name
            write(option, "-d", 31, tiny(), ours)
            if crash_says(ours, *commands) != said:
                wrong.append(f"{name}: crash says other things")
            if drgn_says(ours) != drgn:
                wrong.append(f"{name}: drgn says other things")
            if libkdumpfile_says(ours, theirs.pfns.tolist()) != f"{TINY_RELEASE} {whole}":
                wrong.append(f"{name}: libkdumpfile reads other pages")
    text = f"{len(CODECS)} codecs: crash, drgn ({drgn}) and libkdumpfile ({len(theirs.pfns)} pages) agree"
    return Measured("; ".join(wrong) or text, not wrong)


@bar("write-makedumpfile-reads", "makedumpfile refilters our zlib, lzo and raw dumps and writes the log of each")
def makedumpfile_reads() -> Measured:
    wrong: list[str] = []
    log = corpus(TINY_LOG).read_bytes()
    with scratch() as folder:
        peer("-l", "-d", 31, tiny(), folder / "theirs")
        theirs = Kdump(folder / "theirs")
        for name in ("zlib", "lzo", "none"):
            for level in (0, 1, 31):
                ours = folder / "ours"
                write("-f", CODECS[name], "-d", level, tiny(), ours)
                peer("-f", "-l", "-d", 31, ours, folder / "again")
                again = Kdump(folder / "again")
                if different_pages(again, theirs) or header_differences(again, theirs):
                    wrong.append(f"{name} level {level}: refiltered to something else")
                peer("-f", "--dump-dmesg", ours, folder / "log")
                if (folder / "log").read_bytes() != log:
                    wrong.append(f"{name} level {level}: another log")
    return Measured("; ".join(wrong) or "3 codecs at 3 levels: refiltered to the same dump, the same log", not wrong)


def gdb_says(dump: Path) -> str:
    """The kernel's name in an ELF core, by gdb."""
    with tiny().open("rb") as file:
        found = re.search(rb"KERNELOFFSET=([0-9a-f]+)", file.read(PAGE * 4))
    if found is None:
        raise RuntimeError("the source does not tell where its kernel was")
    words = [f"symbol-file -o 0x{found[1].decode()} {corpus(TINY_VMLINUX)}", f"target core {dump}"]
    commands = [part for text in (*words, "p init_uts_ns.name.release") for part in ("-ex", text)]
    return run(tool("gdb"), "-nx", "-batch", *commands).stdout.decode(errors="replace")


@bar("write-elf", "-E from ELF and from kdump at levels 0, 1, 31: just the level's pages; gdb, crash, drgn open it")
def elf() -> Measured:
    wrong: list[str] = []
    with scratch() as folder:
        write("-l", "-d", 0, tiny(), folder / "kdump")
        for level in (0, 1, 31):
            peer("-l", "-f", "-d", level, tiny(), folder / "theirs")
            expected = {
                pfn: page for pfn, page in Kdump(folder / "theirs").pages() if not level & 1 or any(page or b"")
            }
            for source in (tiny(), folder / "kdump"):
                ours = folder / "ours.elf"
                write("-f", "-E", "-d", level, source, ours)
                what = f"{'kdump' if source.name == 'kdump' else 'ELF'} to ELF at level {level}"
                core = Elf(ours)
                if core.incomplete or not same_pages(core, expected):
                    wrong.append(f"{what}: other pages")
                said = crash_says(ours, "sys", "log")
                if TINY_RELEASE not in said or "sysrq triggered crash" not in said:
                    wrong.append(f"{what}: crash does not open it")
                if f'"{TINY_RELEASE}"' not in gdb_says(ours):
                    wrong.append(f"{what}: gdb does not open it")
                if not drgn_says(ours).startswith(TINY_RELEASE):
                    wrong.append(f"{what}: drgn does not open it")
    return Measured(
        "; ".join(wrong) or "2 sources at 3 levels: the pages are right, gdb, crash and drgn agree", not wrong
    )


def same_pages(core: Elf, expected: dict[int, bytes | None]) -> bool:
    """Whether an ELF core has the expected pages, and nothing else but holes inside the kernel's image."""
    found = core.pages()
    others = [page for pfn, page in found.items() if pfn not in expected]
    return all(found.get(pfn) == page for pfn, page in expected.items()) and not any(map(any, others))


# -- sources -----------------------------------------------------------------------------------------------------------


@bar(
    "write-from-mount", "from a mounted dump, whole or filtered, the same dump as from its file (level 0 of a level 31)"
)
def from_mount() -> Measured:
    texts: list[str] = []
    wrong: list[str] = []
    for name, source in (("tiny", tiny()), ("the guest", big("vmcore"))):
        with scratch() as folder:
            write("-l", "-d", 31, source, folder / "filtered")
            for what, dump, levels in (("whole", source, (1, 31)), ("filtered", folder / "filtered", (0, 31))):
                with mounted(dump) as mount:
                    for level in levels:
                        for point in (mount.path, mount.path / "vmcore"):
                            write("-f", "-l", "-d", level, dump, folder / "direct")
                            write("-f", "-l", "-d", level, point, folder / "mounted")
                            if not same_file(folder / "direct", folder / "mounted"):
                                wrong.append(f"{name}, {what}, level {level}, {point.name}: differs")
            kept = len(Kdump(folder / "mounted").pfns)
            texts.append(f"{name}: {kept} pages at level 31")
    return Measured("; ".join(wrong) or f"byte-identical ({', '.join(texts)})", not wrong)


@bar(
    "write-from-qemu", "QEMU's ELF and kdump at level 31: one dump, whose pages are right, and makedumpfile's if it can"
)
def from_qemu() -> Measured:
    wrong: list[str] = []
    pages = truth("tiny/pages-qemu-kaslr.json")
    with scratch() as folder:
        first = folder / "elf"
        write("-l", "-d", 31, corpus("tiny/qemu-kaslr.elf"), first)
        for form in ("zlib", "lzo", "snappy"):
            write("-f", "-l", "-d", 31, corpus(f"tiny/qemu-kaslr.kdump-{form}"), folder / "kdump")
            if not same_file(first, folder / "kdump"):
                wrong.append(f"kdump-{form} gives another dump than the ELF")
        compared = 0
        for pfn, page in Kdump(first).pages():
            if (known := pages.get(pfn * PAGE)) is not None:
                compared += 1
                wrong += [] if page and sha1(page) == known else [f"page {pfn:#x} is wrong"]
        log = folder / "log"
        peer("--dump-dmesg", first, log)
        if log.read_bytes() != corpus("tiny/qemu-kaslr.log.expected").read_bytes():
            wrong.append("makedumpfile finds another log in it")
        # makedumpfile cannot read QEMU's ELF. The guest's has a copy whose headers were mended for it. It passes over
        # the 64 pages of the BIOS flash, which is no RAM and has no struct pages; for us they are memory in the source.
        peer("-l", "-d", 31, big("elf").with_name("guest.canon.elf"), folder / "theirs")
        write("-l", "-d", 31, big("elf"), folder / "ours")
        if different_pages(Kdump(folder / "ours"), Kdump(folder / "theirs"), beyond=64):
            wrong.append("the guest's ELF: not the pages that makedumpfile keeps of the mended copy")
        kept = len(Kdump(folder / "ours").pfns)
    text = f"4 forms of tiny: one dump ({compared} pages of truth right); the guest: {kept} pages = its + flash"
    return Measured("; ".join(wrong[:4]) or text, not wrong and compared > 50)


@bar("write-secrets", "level-31 ELF and kdump: no more USERSECRET-0123456789 than makedumpfile's kdump")
def secrets() -> Measured:
    def count(path: Path) -> int:
        data = path.read_bytes()
        return data.count(SECRET)

    texts: list[str] = []
    ok = True
    for name, source in (("tiny", tiny()), ("deb61", corpus("deb61/raw-d31.kdump")), ("the guest", big("vmcore"))):
        with scratch() as folder:
            peer("-d", 31, source, folder / "theirs")
            write("-d", 31, source, folder / "ours.kdump")
            write("-E", "-d", 31, source, folder / "ours.elf")
            theirs = count(folder / "theirs")
            ours = count(folder / "ours.kdump"), count(folder / "ours.elf")
        ok &= max(ours) <= theirs
        texts.append(f"{name}: kdump {ours[0]}, ELF {ours[1]}, makedumpfile's kdump {theirs}")
    source_count = count(tiny())
    return Measured(f"{'; '.join(texts)} (the whole of tiny: {source_count})", ok and source_count > theirs)


# -- flattened, split --------------------------------------------------------------------------------------------------


def over_ssh(folder: Path, sending: str, receiving: str) -> str:
    """Run `sending | receiving` with the right side behind ssh when there is an sshd; returns how it went there."""
    sshd, client = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin"), shutil.which("ssh")
    how, remote = "a pipe (no sshd here)", f"sh -c {shlex.quote(receiving)}"
    if sshd and client:
        run("ssh-keygen", "-q", "-N", "", "-t", "ed25519", "-f", folder / "key")
        shutil.copy(folder / "key.pub", folder / "allowed")
        config = folder / "sshd_config"
        config.write_text(f"HostKey {folder}/key\nAuthorizedKeysFile {folder}/allowed\nStrictModes no\nUsePAM no\n")
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        options = (
            f"-F none -i {folder}/key -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
        )
        proxy = shlex.quote(f"{sshd} -i -e -f {config} 2>{folder}/sshd.log")
        remote = f"{client} {options} -o ProxyCommand={proxy} here {shlex.quote(receiving)}"
        how = "ssh"
    result = run("bash", "-c", f"set -o pipefail; {sending} | {remote}")
    if result.returncode:
        raise RuntimeError(f"{how}: {result.stderr.decode()[-300:]}")
    return how


@bar("write-flattened", "-F by us = plain after makedumpfile -R and ours; its -F by our -R = by its own; through ssh")
def flattened() -> Measured:
    wrong: list[str] = []
    with scratch() as folder:
        plain, out, flat = folder / "plain", folder / "out", folder / "flat"
        for form in (["-l", "-d", "31"], ["-c", "-d", "0"], ["-z", "-d", "1"], ["-E", "-d", "31"], ["-E", "-d", "0"]):
            write("-f", *form, tiny(), plain)
            flat.write_bytes(write("-F", *form, tiny(), "-").stdout)
            with flat.open("rb") as stream:
                peer("-f", "-R", out, stdin=stream)
            if not same_file(plain, out):
                wrong.append(f"{' '.join(form)}: makedumpfile -R of our stream is not our file")
            write("-f", "-R", flat, out)
            if not same_file(plain, out):
                wrong.append(f"{' '.join(form)}: our -R of our stream is not our file")
            write("-f", "-F", *form, tiny(), out)
            if not same_file(flat, out):
                wrong.append(f"{' '.join(form)}: -F to a file is not -F to stdout")
            if form[0] == "-z":
                continue  # Debian's makedumpfile has no zstd
            with flat.open("wb") as stream:
                command = [tool("makedumpfile"), "--message-level", "0", "-F", *form, str(tiny())]
                subprocess.run(command, stdout=stream, stderr=subprocess.DEVNULL, check=True)
            for rearrange in (write, peer):
                with flat.open("rb") as stream:
                    rearrange("-f", "-R", out if rearrange is write else plain, stdin=stream)
            if not same_file(plain, out):
                wrong.append(f"{' '.join(form)}: makedumpfile's stream, by us and by itself: differ")
        out.unlink()
        write("-f", "-c", "-d", 31, tiny(), plain)
        sending = shlex.join([DUMPFS, "write", "-F", "-c", "-d", "31", str(tiny()), "-"])
        how = over_ssh(folder, sending, shlex.join([DUMPFS, "write", "-R", str(out)]))
        if not same_file(plain, out):
            wrong.append(f"through {how}: another dump arrived")
    return Measured("; ".join(wrong) or f"5 forms byte-identical in both directions, and through {how}", not wrong)


@bar("write-split", "makedumpfile --reassemble joins our split into our plain dump; ours joins its")
def split() -> Measured:
    wrong: list[str] = []
    sizes = ""
    for name, source in (("tiny", tiny()), ("the guest", big("vmcore"))):
        with scratch() as folder:
            parts = [folder / f"part{i}" for i in range(3)]
            plain, joined = folder / "plain", folder / "joined"
            write("-l", "-d", 31, source, plain)
            write("--split", "-l", "-d", 31, source, *parts)
            peer("--reassemble", *parts, joined)
            sizes = ", ".join(f"{p.stat().st_size >> 10} KiB" for p in parts)
            if not same_file(plain, joined):
                wrong.append(f"{name}: makedumpfile joins our parts to another dump")
            write("-f", "--reassemble", *reversed(parts), joined)
            if not same_file(plain, joined):
                wrong.append(f"{name}: we join our parts to another dump")
            peer("-f", "--split", "--splitblock-size", 1024, "-c", "-d", 31, source, *parts)
            peer("-f", "--reassemble", *parts, plain)
            write("-f", "--reassemble", *parts, joined)
            a, b = Kdump(joined), Kdump(plain)
            if different_pages(a, b) or header_differences(a, b):
                wrong.append(f"{name}: we join its parts to another dump")
    return Measured("; ".join(wrong) or f"byte-identical; the guest's parts {sizes}", not wrong)


@bar("write-foreign", "arm64 and s390x dumps by QEMU: written at level 31, the truth's pages are right in the output")
def foreign() -> Measured:
    texts: list[str] = []
    ok = True
    for arch in ("arm64", "s390x"):
        pages = truth(f"foreign/{arch}/pages.json")
        with scratch() as folder:
            write("-z", "-d", 31, corpus(f"foreign/{arch}/{arch}.kdump-zlib"), folder / "ours")
            with mounted(folder / "ours") as mount:
                info = json.loads((mount.path / "info.json").read_text())
                compared = bad = 0
                for paddr, known in pages.items():
                    page = mount.path / "pages" / str(paddr // info["page_size"])
                    if os.path.exists(page) and b"stored" in os.getxattr(page, "user.dumpfs.state"):
                        compared += 1
                        bad += sha1(page.read_bytes()) != known
        ok &= compared > 20 and not bad
        texts.append(f"{arch}: {info['pages']['stored']} pages kept, {compared} compared, {bad} wrong")
    return Measured("; ".join(texts), ok)
