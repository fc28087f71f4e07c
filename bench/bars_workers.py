"""Bars of a mount that goes on: workers killed under load, and hours of mixed reading, made short.

Readers are processes, so that they do not wait for each other. All they get is compared: memory with what an
independent reader finds in the vmcore that the dump was made of, the log with makedumpfile's, and what nobody else can
make with the same file of a calm mount.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from barlib import PAGE, Measured, Mounted, bar, big, made, mount_pids, mounted, now, run, say, tool
from bars_reading import vmcore_loads
from plainreader import Elf

DUMP = "lzo-d0.kdump"
KILLS = int(os.environ.get("DUMPFS_BENCH_KILLS", "20"))
KILL_PAUSES = (0.05, 0.6)
"""Seconds between two kills, chosen at random from these on."""
LONGEST_STALL = 1.0
SOAK_SECONDS = float(os.environ.get("DUMPFS_BENCH_SOAK", "600"))
SAMPLE_SECONDS = 2.0
WARM_UP_SECONDS = min(60.0, SOAK_SECONDS / 3)
"""Until then views are built, and what is allocated once may be allocated."""
CACHE_BYTES = 16 << 20
"""The default of cache=."""
SLACK_BYTES = 8 << 20
"""By how much, for each worker, memory may grow beside the cache: the largest answer (1 MiB), the blobs and pages that
it is made of, what 1024 nodes in use keep, and the gaps between them."""
END_SECONDS = 5.0
"""How long after `umount` the last process may be there."""
BIG_READ = 8 << 20
_TOLD = 5
"""How many errors a reader describes."""

Step = Callable[["Account"], None]
Maker = Callable[[], Step]
"""Opens files, so it is called by the reader itself: the bar must not have them open when it unmounts."""


class Truth:
    """The guest's memory as the vmcore has it."""

    def __init__(self) -> None:
        elf = Elf(big("vmcore"))
        self._data: npt.NDArray[np.uint8] = elf.data
        self._loads = sorted((paddr, offset, size) for paddr, offset, size, _ in elf.loads)

    def memory(self, paddr: int, size: int) -> bytes:
        """`size` bytes of physical memory, zero where the vmcore has none."""
        found = np.zeros(size, np.uint8)
        for first, offset, length in self._loads:
            low, high = max(first, paddr), min(first + length, paddr + size)
            if low < high:
                found[low - paddr : high - paddr] = self._data[offset + low - first : offset + high - first]
        return found.tobytes()


@dataclass
class Account:
    """What a reader did and met."""

    reads: int = 0
    nbytes: int = 0
    slowest: float = 0.0
    errors: int = 0
    wrong: int = 0
    told: list[str] = field(default_factory=list)

    def check(self, what: str, get: Callable[[], bytes], expected: Callable[[bytes], bool]) -> None:
        """Time a read and look at what came."""
        start = now()
        try:
            data = get()
        except OSError as exc:
            self.errors += 1
            self._tell(f"{what}: {exc.strerror}")
            data = None
        self.slowest = max(self.slowest, now() - start)
        self.reads += 1
        if data is None:
            return
        self.nbytes += len(data)
        if not expected(data):
            self.wrong += 1
            self._tell(f"{what}: wrong, {len(data)} bytes")

    def _tell(self, text: str) -> None:
        if len(self.told) < _TOLD:
            self.told.append(text)


class Readers:
    """Processes that each repeat a step until told to stop."""

    def __init__(self, *makers: Maker) -> None:
        self._enough = mmap.mmap(-1, PAGE)
        self._pipes = []
        for number, maker in enumerate(makers):
            receiver, sender = os.pipe()
            if not os.fork():
                self._repeat(maker, sender, number)
            os.close(sender)
            self._pipes.append(receiver)

    def _repeat(self, maker: Maker, sender: int, number: int) -> None:
        account = Account()
        try:
            random.seed(number)
            step = maker()
            while not self._enough[0]:
                step(account)
            os.write(sender, json.dumps(vars(account)).encode())
        except Exception:  # noqa: BLE001  # must not unwind into the bar
            traceback.print_exc()
        finally:
            os._exit(0)

    def finish(self) -> list[Account]:
        """Stop them; their accounts."""
        self._enough[0] = 1
        accounts = []
        for receiver in self._pipes:
            with os.fdopen(receiver, "rb") as pipe:
                text = pipe.read()
            os.wait()
            if not text:
                raise RuntimeError("a reader failed")
            accounts.append(Account(**json.loads(text)))
        return accounts


# -- what readers do ---------------------------------------------------------------------------------------------------


def opened(path: Path, flags: int = 0) -> int:
    """A descriptor for reading."""
    return os.open(path, os.O_RDONLY | flags)


def uncached(fd: int) -> None:
    """Have the kernel forget what it keeps of a file, so that we are asked again."""
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def direct_reader(path: Path, size: int, order: Callable[[int], Iterator[int]], expected: Callable[..., bytes]) -> Step:
    """Reads blocks of `size` past the kernel's cache, in the order given."""
    fd = opened(path, os.O_DIRECT)
    total = os.fstat(fd).st_size
    buffer = mmap.mmap(-1, size)
    offsets = iter(())

    def step(account: Account) -> None:
        nonlocal offsets
        offset = next(offsets, -1)
        if offset < 0:
            offsets = order(total // PAGE * PAGE)
            return
        wanted = min(size, total - offset)

        def get() -> bytes:
            got = os.preadv(fd, (buffer,), offset)
            return buffer[:got]

        account.check(f"{path.name} at {offset:#x}", get, lambda data: data == expected(offset, wanted))

    return step


def at_random(total: int) -> Iterator[int]:
    """Pages anywhere, for a while."""
    return (random.randrange(total // PAGE) * PAGE for _ in range(10_000))


def in_order(total: int) -> Iterator[int]:
    """Large blocks one after the other."""
    return iter(range(0, total, BIG_READ))


def buffered_reader(path: Path, size: int, expected: Callable[..., bytes]) -> Step:
    """Reads from the beginning to the end, as cat and strings do, and begins again without the kernel's cache."""
    fd = opened(path)
    total = os.fstat(fd).st_size
    offset = 0

    def step(account: Account) -> None:
        nonlocal offset
        if offset >= total:
            uncached(fd)
            offset = 0
        wanted = min(size, total - offset)
        account.check(
            f"{path.name} at {offset:#x}",
            lambda: os.pread(fd, size, offset),
            lambda data: data == expected(offset, wanted),
        )
        offset += size

    return step


def cat(path: Path) -> bytes:
    """What cat prints of a file that the kernel has forgotten."""
    with contextlib.suppress(OSError):
        fd = opened(path)
        uncached(fd)
        os.close(fd)
    result = run("cat", path)
    if result.returncode:
        raise OSError(0, result.stderr.decode(errors="replace").strip())
    return result.stdout


def whole_reader(files: dict[Path, bytes | None]) -> Step:
    """cats one file after the other; None is for content that changes."""
    left: list[Path] = []

    def step(account: Account) -> None:
        if not left:
            left.extend(random.sample(list(files), len(files)))
        path = left.pop()
        content = files[path]
        account.check(str(path), lambda: cat(path), lambda data: bool(data) if content is None else data == content)

    return step


def page_reader(pages: Path, pfns: list[int], expected: Callable[..., bytes]) -> Step:
    """Reads files of single pages."""

    def step(account: Account) -> None:
        pfn = random.choice(pfns)
        account.check(f"page {pfn:#x}", (pages / str(pfn)).read_bytes, lambda data: data == expected(pfn * PAGE, PAGE))

    return step


def taking_turns(*makers: Maker) -> Step:
    """Now this, now that."""
    steps = [maker() for maker in makers]

    def step(account: Account) -> None:
        random.choice(steps)(account)

    return step


# -- what they compare with --------------------------------------------------------------------------------------------


class Calm:
    """Files as a mount gives them that nobody disturbs, checked against others as far as others can tell."""

    def __init__(self, truth: Truth) -> None:
        dmesg = made("peer-guest--dump-dmesg", lambda out: [tool("makedumpfile"), "--dump-dmesg", big(DUMP), out])
        with mounted(big(DUMP)) as mount:
            self.vmcore = np.fromfile(mount.path / "vmcore", np.uint8)
            for paddr, offset, size in vmcore_loads(mount.path / "vmcore"):
                whole = size // PAGE * PAGE
                for at in range(0, whole if paddr < 1 << 52 else 0, BIG_READ):
                    part = min(BIG_READ, whole - at)
                    if self.vmcore[offset + at : offset + at + part].tobytes() != truth.memory(paddr + at, part):
                        raise RuntimeError(f"/vmcore of a calm mount is wrong at {offset + at:#x}")
            self.dmesg = (mount.path / "dmesg").read_bytes()
            if self.dmesg != dmesg.read_bytes():
                raise RuntimeError("/dmesg of a calm mount is not makedumpfile's")
            self.texts = self._texts(mount.path)
            bits = (mount.path / "bitmaps" / "stored").read_bytes()
            ones = np.flatnonzero(np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little"))
            self.pfns: list[int] = ones.tolist()

    def _texts(self, root: Path) -> dict[str, bytes]:
        """Small and slow files, by path inside the mount."""
        names = [f"tasks/{n}/{f}" for n in os.listdir(root / "tasks") for f in ("comm", "status", "stack", "maps")]
        names += ["kallsyms", "btf", "modules", "vmlinux", "vmcoreinfo", "memmap", "cpus/0/registers"]
        return {name: (root / name).read_bytes() for name in names if (root / name).exists()}

    def core(self, offset: int, size: int) -> bytes:
        """Bytes of /vmcore."""
        return self.vmcore[offset : offset + size].tobytes()


# -- the mount's processes ---------------------------------------------------------------------------------------------


def supervisor(mount: Mounted) -> int:
    """The process that is no other's child."""
    return next(pid for pid in mount.pids if parent(pid) not in mount.pids)


def parent(pid: int) -> int:
    """Process id of the parent."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def workers(boss: int) -> list[int]:
    """Children that answer requests; helpers, which may be among them, have no device."""
    found = []
    for pid in map(int, Path(f"/proc/{boss}/task/{boss}/children").read_text().split()):
        with contextlib.suppress(OSError):
            if any(os.readlink(entry) == "/dev/fuse" for entry in Path(f"/proc/{pid}/fd").iterdir()):
                found.append(pid)
    return found


def memory(pids: list[int]) -> int:
    """Bytes that the mount's processes use: what each has, shared pages in proportion, and what their memory files
    have, whether it is mapped anywhere or not."""
    total = 0
    files: dict[int, int] = {}
    for pid in pids:
        with contextlib.suppress(OSError):  # a helper that has just ended
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith(("Pss_Anon:", "Pss_File:")):
                    total += int(line.split()[1]) << 10
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                if "memfd:" in os.readlink(entry):
                    status = entry.stat()
                    files[status.st_ino] = status.st_blocks * 512
    return total + sum(files.values())


def remaining(pids: set[int], seconds: float = END_SECONDS) -> list[int]:
    """Those of the processes that do not end in time; a zombie has ended."""
    until = now() + seconds
    while (left := [pid for pid in pids if os.path.exists(f"/proc/{pid}/fd/0")]) and now() < until:
        time.sleep(0.02)
    return left


@contextlib.contextmanager
def logged_mount() -> Iterator[tuple[Mounted, Path]]:
    """A mount of the benchmark dump, and its log."""
    folder = Path(tempfile.mkdtemp(prefix="dumpfs-log-"))
    try:
        with mounted(big(DUMP), options=f"log={folder / 'log'}") as mount:
            yield mount, folder / "log"
    finally:
        shutil.rmtree(folder)


def counted(mount: Mounted, name: str) -> int:
    """A number of /status."""
    lines = (mount.path / "status").read_text().splitlines()
    return next(int(line.split()[-1]) for line in lines if line.strip().startswith(f"{name}:"))


def told(accounts: list[Account]) -> str:
    """What readers complained of."""
    complaints = [text for account in accounts for text in account.told]
    return f"; {'; '.join(complaints[:_TOLD])}" if complaints else ""


@bar(
    "worker-kill",
    f"kill -9 of a worker {KILLS} times under 4 readers: right bytes, no error, no read takes over {LONGEST_STALL} s",
)
def worker_kill() -> Measured:
    truth = Truth()
    calm = Calm(truth)
    chosen = random.Random(5)
    seen: set[int] = set()
    with logged_mount() as (mount, _):
        boss = supervisor(mount)
        seen.update(mount.pids)
        hmem, vmcore = mount.path / "hmem", mount.path / "vmcore"
        readers = Readers(
            partial(direct_reader, hmem, PAGE, at_random, truth.memory),
            partial(direct_reader, hmem, BIG_READ, in_order, truth.memory),
            partial(whole_reader, {mount.path / "dmesg": calm.dmesg}),
            partial(buffered_reader, vmcore, 64 << 10, calm.core),
        )
        try:
            for _ in range(KILLS):
                time.sleep(chosen.uniform(*KILL_PAUSES))
                alive = workers(boss)
                seen.update(alive)
                os.kill(chosen.choice(alive), signal.SIGKILL)
            time.sleep(KILL_PAUSES[1])
        finally:
            accounts = readers.finish()
        seen.update(mount_pids(mount.path))
        restarts = counted(mount, "workers_restarted")
    stale = remaining(seen)
    errors, wrong = (sum(getattr(a, name) for a in accounts) for name in ("errors", "wrong"))
    slowest = max(account.slowest for account in accounts)
    text = (
        f"{restarts} workers replaced, {sum(a.reads for a in accounts)} reads, "
        f"{sum(a.nbytes for a in accounts) / 1e9:.1f} GB compared, {errors} errors, {wrong} wrong, "
        f"slowest read {slowest * 1000:.0f} ms, {len(stale)} processes left{told(accounts)}"
    )
    return Measured(text, restarts == KILLS and not errors and not wrong and slowest <= LONGEST_STALL and not stale)


def sampled(mount: Mounted, seen: set[int]) -> list[tuple[float, int]]:
    """(seconds, bytes) of the mount's memory until the soak is over."""
    samples = []
    start = now()
    while (elapsed := now() - start) < SOAK_SECONDS:
        pids = mount_pids(mount.path)
        seen.update(pids)
        samples.append((elapsed, memory(pids)))
        if sys.stderr.isatty() or os.environ.get("DUMPFS_BENCH_VERBOSE"):
            say(f"{elapsed:6.0f} s  {samples[-1][1] / 1e6:8.1f} MB  {len(pids)} processes")
        time.sleep(SAMPLE_SECONDS)
    return samples


@bar(
    "soak",
    "4 readers on mixed views for 10 minutes: no wrong byte, memory grows by no more than the caches after the first "
    "minute, no process stays",
)
def soak() -> Measured:
    truth = Truth()
    calm = Calm(truth)
    seen: set[int] = set()
    with logged_mount() as (mount, log):
        seen.update(mount.pids)
        count = len(workers(supervisor(mount)))
        hmem, vmcore = mount.path / "hmem", mount.path / "vmcore"
        texts: dict[Path, bytes | None] = {mount.path / name: data for name, data in calm.texts.items()}
        texts |= {mount.path / "dmesg": calm.dmesg, mount.path / "status": None, mount.path / "info.json": None}
        readers = Readers(
            partial(direct_reader, hmem, PAGE, at_random, truth.memory),
            partial(buffered_reader, hmem, 1 << 20, truth.memory),
            partial(
                taking_turns,
                partial(page_reader, mount.path / "pages", calm.pfns, truth.memory),
                partial(direct_reader, vmcore, PAGE, at_random, calm.core),
                partial(buffered_reader, vmcore, 64 << 10, calm.core),
            ),
            partial(whole_reader, texts),
        )
        try:
            samples = sampled(mount, seen)
        finally:
            accounts = readers.finish()
        restarts = counted(mount, "workers_restarted")
        trouble = [line for line in log.read_text().splitlines() if ": WARNING: " in line or ": ERROR: " in line]
    stale = remaining(seen)
    before = [size for seconds, size in samples if seconds >= WARM_UP_SECONDS][:5]
    after = [size for seconds, size in samples if seconds >= WARM_UP_SECONDS]
    growth = max(after) - sorted(before)[len(before) // 2]
    late = sum(after[-5:]) // 5 - sum(before) // 5
    limit = (CACHE_BYTES + SLACK_BYTES) * count
    errors, wrong = (sum(getattr(a, name) for a in accounts) for name in ("errors", "wrong"))
    text = (
        f"{SOAK_SECONDS:.0f} s, {count} workers, {sum(a.reads for a in accounts)} reads, "
        f"{sum(a.nbytes for a in accounts) / 1e9:.1f} GB compared, {errors} errors, {wrong} wrong; "
        f"{before[0] / 1e6:.1f} MB after {WARM_UP_SECONDS:.0f} s, grown by {late / 1e6:.1f} MB, "
        f"by {growth / 1e6:.1f} MB at most (of {limit / 1e6:.0f}); {restarts} workers died, "
        f"{len(trouble)} complaints in the log, {len(stale)} processes left{told(accounts)}"
    )
    good = not (errors or wrong or stale or restarts or trouble)
    return Measured(text, good and growth <= limit and SOAK_SECONDS >= 600)
