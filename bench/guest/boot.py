"""boot.py MEMORY HEAPS [elf]: boot the guest, crash it, and wait until the capture kernel has saved its /proc/vmcore.

MEMORY is in MiB: the crashed system has this less what the capture kernel lives in. HEAPS is the number of processes
that fill it. With `elf`, QEMU dumps it first.

Works in the current directory: reads root/boot and disk.img, writes guest.vmcore, serial.log and perhaps guest.elf.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import IO

MEMORY, HEAPS = map(int, sys.argv[1:3])
WITH_ELF = sys.argv[3:] == ["elf"]
CRASHKERNEL = 192  # MiB
# Twenty times what an idle machine takes, since emulation on a busy one is slow.
TIMEOUT = 600  # seconds, for each step

COMMAND = [
    "qemu-system-x86_64", "-nodefaults", "-display", "none", "-no-reboot",
    # Emulation works everywhere and always the same; five-level page tables are still the exception.
    "-accel", "tcg,thread=multi", "-cpu", "max,la57=off", "-smp", "2", "-m", str(MEMORY),
    "-device", "vmcoreinfo",
    "-drive", "file=disk.img,if=virtio,format=raw,readonly=on",
    # The size of the file is cut afterwards to what the capture kernel says.
    "-drive", "file=guest.vmcore,if=virtio,format=raw,cache=unsafe",
    "-kernel", "root/boot/vmlinuz", "-initrd", "root/boot/initrd",
    # Few kernel messages on the console, so that none falls into a line of init; the log buffer has them all.
    "-append", f"console=ttyS0 loglevel=4 crashkernel={CRASHKERNEL}M panic=-1 heaps={HEAPS}",
    "-qmp", "stdio", "-serial", "chardev:serial",
]  # fmt: skip


class Console:
    """The guest's serial console: one socket, everything read also goes to the log."""

    def __init__(self, sock: socket.socket, log: IO[bytes]) -> None:
        self._sock = sock
        self._log = log
        self._seen = b""

    def wait_line(self, start: bytes) -> bytes:
        """Rest of the first line from here on that starts with `start`; exits on a failure, the end, or a timeout."""
        deadline = time.monotonic() + TIMEOUT
        while True:
            *lines, self._seen = self._seen.split(b"\n")
            for number, line in enumerate(lines):
                if line.startswith(b"@@ FAILED"):
                    sys.exit(f"bench/guest: guest: {line.decode()}")
                if line.startswith(start):
                    self._seen = b"\n".join([*lines[number + 1 :], self._seen])
                    return line[len(start) :].strip()
            self._sock.settimeout(max(0.1, deadline - time.monotonic()))
            try:
                data = self._sock.recv(1 << 16)
            except TimeoutError:
                data = b""
            if not data:
                sys.exit(f"bench/guest: the guest did not say {start.decode()}, see serial.log in {os.getcwd()}")
            self._log.write(data)
            self._log.flush()
            self._seen += data

    def send_line(self) -> None:
        """Send an empty line."""
        self._sock.sendall(b"\n")


def qmp(qemu: "subprocess.Popen[str]", command: str, **arguments: object) -> None:
    """Run a monitor command to its end; events in between are skipped."""
    to_qemu, from_qemu = open_pipes(qemu)
    to_qemu.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
    to_qemu.flush()
    for line in from_qemu:
        reply = json.loads(line)
        if "error" in reply:
            sys.exit(f"bench/guest: {command}: {reply['error']['desc']}")
        if "return" in reply:
            return
    sys.exit(f"bench/guest: {command}: QEMU ended")


def open_pipes(qemu: "subprocess.Popen[str]") -> tuple[IO[str], IO[str]]:
    """stdin and stdout of QEMU, which Popen types as optional."""
    assert qemu.stdin
    assert qemu.stdout
    return qemu.stdin, qemu.stdout


def take_dumps(qemu: "subprocess.Popen[str]", console: Console, say: Callable[[str], None]) -> int:
    """Dump the guest from outside, if asked for, then from inside; the size of its /proc/vmcore in bytes. Ends QEMU."""
    try:
        qmp(qemu, "qmp_capabilities")
        say("booting and filling the guest")
        console.wait_line(b"@@ READY")
        if WITH_ELF:
            say("QEMU dumps")
            qmp(qemu, "dump-guest-memory", paging=False, protocol=f"file:{os.getcwd()}/guest.elf")
        say("crash; the capture kernel saves /proc/vmcore")
        console.send_line()
        size = int(console.wait_line(b"@@ SAVED"))
        qemu.wait(TIMEOUT)
        say(f"saved {size} bytes")
        return size
    finally:
        qemu.kill()


def main() -> None:
    """Start QEMU, take the dumps, cut the vmcore to its size."""
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"bench/guest: {time.monotonic() - started:4.0f} s: {text}", file=sys.stderr)

    with open("guest.vmcore", "wb") as target:
        target.truncate((MEMORY + 64) << 20)  # RAM, the kernel image a second time, and headers
    host, guest = socket.socketpair()
    command = [*COMMAND, "-chardev", f"socket,id=serial,fd={guest.fileno()}"]
    qemu = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=[guest.fileno()]
    )
    guest.close()
    with open("serial.log", "wb") as log:
        size = take_dumps(qemu, Console(host, log), say)
    os.truncate("guest.vmcore", size)


main()
