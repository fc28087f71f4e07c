"""The section about `dumpfs write`."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from barlib import DUMPFS, Missing, big, run, tool
from readlib import warm
from writerlib import CODECS, peer, scratch, scratch_on_disk, seconds_to_write, words, write

from page.measure import Plan, Row, Turns, section

_LETTERS = {**CODECS, "ELF": "-E"}
_REFILTER_LEVELS = (17, 31)


def _peer_can(codec: str) -> None:
    """`Missing` for what this makedumpfile was built without; it would write pages uncompressed and say nothing."""
    if codec in ("snappy", "zstd"):
        said = run(tool("makedumpfile"), "-v").stdout.decode()
        if not any(line.split() == [codec, "enabled"] for line in said.splitlines()):
            raise Missing(f"makedumpfile was built without {codec}")


def _pair(
    plan: Plan,
    title: str,
    codec: str,
    folder: Path,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    *,
    cold: bool = False,
) -> Row:
    def by_us() -> float:
        return seconds_to_write(ours, folder, cold=cold)

    def by_peer() -> float:
        _peer_can(codec)
        return seconds_to_write(theirs, folder, cold=cold)

    sides = {"dumpfs": by_us, "makedumpfile": by_peer}
    return Turns(plan.rounds(3, 1), sides).row(title, "s", dumpfs="dumpfs", makedumpfile="makedumpfile")


@section(
    "writing",
    "Writing dumps",
    """
    Whole commands, from the uncompressed vmcore (or, to refilter, from a level-0 dump of the codec) to a file
    in memory; the input is in the page cache. makedumpfile runs with one thread, as it does by default. *Disk to disk*:
    caches are dropped before each run; dumpfs ends when what it has written is on the disk, makedumpfile before.
    """,
)
def writing(plan: Plan) -> Iterator[Row]:
    source = big("vmcore")
    warm(source)
    for codec, letter in _LETTERS.items():
        for level in (0, 31):
            title = f"write {letter or 'uncompressed'} -d {level}"
            with scratch() as folder:
                yield _both(plan, title, codec, folder, letter, "-d", level, source)
    for codec in ("zlib", "lzo"):
        dump = big(f"{codec}-d0.kdump")
        warm(dump)
        for level in _REFILTER_LEVELS:
            with scratch() as folder:
                yield _both(plan, f"refilter {codec} 0 to {level}", codec, folder, _LETTERS[codec], "-d", level, dump)
    for level in (0, 31):
        with scratch() as folder:
            yield _both(plan, f"write -F -l -d {level}", "lzo", folder, "-F", "-l", "-d", level, source)
    with scratch() as folder:
        names = [[folder / f"{side}.{part}" for part in (1, 2)] for side in ("ours", "theirs")]
        split = ("-f", "--split", "-l", "-d", 0, "--splitblock-size", 1 << 10, source)
        yield _pair(
            plan, "write --split -l -d 0, 2 parts", "lzo", folder,
            lambda: write(*split, *names[0]), lambda: peer(*split, *names[1]),
        )  # fmt: skip
    yield from _disk_to_disk(plan, source)


def _disk_to_disk(plan: Plan, source: Path) -> Iterator[Row]:
    with suppress(Missing):  # the dumps lie on no disk
        for level in (0, 31):
            with scratch_on_disk() as folder:
                title = f"disk to disk, write -l -d {level}"
                yield _both(plan, title, "lzo", folder, "-l", "-d", level, source, cold=True)


def _both(plan: Plan, title: str, codec: str, folder: Path, *arguments: object, cold: bool = False) -> Row:
    ours, theirs = folder / "ours", folder / "theirs"
    if "-F" not in arguments:
        return _pair(
            plan,
            title,
            codec,
            folder,
            lambda: write("-f", *arguments, ours),
            lambda: peer("-f", *arguments, theirs),
            cold=cold,
        )

    def piped(command: list[str], out: Path) -> None:
        line = shlex.join([*command, "--message-level", "4", *words(*arguments)])
        said = run("sh", "-c", f"{line} > {out}")
        if said.returncode:
            raise RuntimeError(said.stderr.decode(errors="replace")[-150:])

    return _pair(
        plan,
        title,
        codec,
        folder,
        lambda: piped([DUMPFS, "write"], ours),
        lambda: piped([tool("makedumpfile")], theirs),
    )
