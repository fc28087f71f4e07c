"""What is written is read back: every codec and form, early ends, and what was lost in the source."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from dumpfs.formats import open_image
from dumpfs.formats.kdump.header import parse_header
from dumpfs.sources.local import FileSource
from dumpfs.units import PageState
from dumpfs.writer.bytesink import PlainSink
from dumpfs.writer.pipeline.run import Hooks, WriteReport, WriteRequest, write_dump
from dumpfs.writer.rearrange import Rearranger
from tests.build.kdump import KdumpSpec, build_kdump
from tests.build.model import Kind, Memory, Page

PAGE = 4096
CODECS = {"none": 0, "zlib": 1, "lzo": 2, "snappy": 4, "zstd": 0x20}
each_codec = pytest.mark.parametrize("codec", CODECS)


def sample(pages: int = 3000, seed: int = 1) -> Memory:
    """Memory with text, noise, zero, excluded and absent pages."""
    rng = random.Random(seed)
    found: dict[int, Page] = {}
    for pfn in range(pages):
        kind = rng.choice(["text", "text", "noise", "zero", "excluded", "absent"])
        if kind == "text":
            data = (b"page %d " % pfn * 600)[:PAGE]
            found[pfn] = Page(data, codec="zlib")
        elif kind == "noise":
            found[pfn] = Page(rng.randbytes(PAGE))
        elif kind == "zero":
            found[pfn] = Page(bytes(PAGE), codec="zero")
        elif kind == "excluded":
            found[pfn] = Page(kind=Kind.EXCLUDED)
    return Memory(PAGE, pages, found)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Memory, str]:
    """A dump and its description."""
    memory = sample()
    path = tmp_path_factory.mktemp("source") / "dump"
    path.write_bytes(build_kdump(memory, KdumpSpec()).data)
    return memory, str(path)


def write(source: str, target: Path, **more: object) -> WriteReport:
    request = WriteRequest(sources=(source,), outputs=(str(target),), threads=2, **more)  # type: ignore[arg-type]
    return write_dump(request, Hooks())


def assert_same(memory: Memory, path: str | Path) -> None:
    """The dump at `path` gives what the description says."""
    image = open_image([str(path)])
    try:
        last = max(memory.pages) + 1
        for first in range(0, last, 512):
            count = min(512, last - first)
            data, states = image.read_run(first, count)
            assert (data, states) == memory.run(first, count)
    finally:
        image.close()


@each_codec
def test_pages_read_back_as_they_were(source, tmp_path, codec):
    memory, path = source
    write(path, tmp_path / "out", codec_flag=CODECS[codec])
    assert_same(memory, tmp_path / "out")


@each_codec
def test_refiltering_its_own_output_changes_nothing(source, tmp_path, codec):
    write(source[1], tmp_path / "one", codec_flag=CODECS[codec], level=1)
    write(str(tmp_path / "one"), tmp_path / "two", codec_flag=CODECS[codec], level=1)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("threads", [1, 3])
def test_number_of_processes_does_not_change_the_file(source, tmp_path, threads):
    write(source[1], tmp_path / "two", codec_flag=1)
    request = WriteRequest((source[1],), (str(tmp_path / "other"),), codec_flag=1, threads=threads)
    write_dump(request, Hooks())
    assert (tmp_path / "two").read_bytes() == (tmp_path / "other").read_bytes()


@pytest.mark.parametrize("elf", [False, True], ids=["kdump", "elf"])
def test_flattened_stream_rearranges_to_the_plain_file(source, tmp_path, elf):
    write(source[1], tmp_path / "plain", elf=elf, level=1)
    write(source[1], tmp_path / "flat", elf=elf, level=1, flatten=True)
    stream = os.open(tmp_path / "flat", os.O_RDONLY)
    out = os.open(tmp_path / "back", os.O_RDWR | os.O_CREAT)
    try:
        assert Rearranger(stream, "flat", PlainSink(out), str).run().cause == ""
    finally:
        os.close(stream)
        os.close(out)
    assert (tmp_path / "back").read_bytes() == (tmp_path / "plain").read_bytes()


def test_split_set_holds_every_page(source, tmp_path):
    memory, path = source
    parts = tuple(str(tmp_path / name) for name in "abc")
    write_dump(WriteRequest((path,), parts, codec_flag=1, threads=2), Hooks())
    write_dump(WriteRequest(parts[::-1], (str(tmp_path / "joined"),), codec_flag=None, threads=2), Hooks())
    assert_same(memory, tmp_path / "joined")


def test_elf_holds_the_pages_and_tells_what_was_left_out(source, tmp_path):
    memory, path = source
    write(path, tmp_path / "core", elf=True)
    assert_same(memory, tmp_path / "core")


def test_lost_page_never_becomes_zeros(source, tmp_path):
    memory = source[0]
    victim = memory.where(Kind.STORED)[40]
    broken = memory.changed({victim}, Kind.LOST)
    broken.pages[victim] = Page(kind=Kind.LOST, descriptor=(0, 0, 0))
    (tmp_path / "source").write_bytes(build_kdump(broken, KdumpSpec()).data)
    report = write(str(tmp_path / "source"), tmp_path / "out", codec_flag=2, level=1)
    assert report.totals.lost == 1
    image = open_image([str(tmp_path / "out")])
    assert image.read_page(victim)[1] is PageState.LOST
    image.close()


def test_lost_page_is_in_no_segment_of_an_elf(source, tmp_path):
    memory = source[0]
    victim = memory.where(Kind.STORED)[40]
    broken = memory.changed({victim}, Kind.LOST)
    broken.pages[victim] = Page(kind=Kind.LOST, descriptor=(0, 0, 0))
    (tmp_path / "source").write_bytes(build_kdump(broken, KdumpSpec()).data)
    write(str(tmp_path / "source"), tmp_path / "out", elf=True)
    image = open_image([str(tmp_path / "out")])
    assert image.read_page(victim)[1] is PageState.ABSENT
    image.close()


@pytest.mark.parametrize("codec_flag", [0, 1, 2, 4, 32, None], ids=["raw", "zlib", "lzo", "snappy", "zstd", "elf"])
@pytest.mark.parametrize("places", [(41,), (0,), (-1,), (40, 41, 42, 60), range(64)], ids=str)
def test_corrupt_pages_cost_no_others(source, tmp_path, codec_flag, places):
    """Found out only when they are read, amid a batch."""
    stored = source[0].where(Kind.STORED)
    victims = {stored[place] for place in places}
    broken = source[0].changed(set(), Kind.LOST)
    for victim in victims:
        broken.pages[victim] = Page(kind=Kind.CORRUPT, stored_form=(1, b"not zlib"))
    (tmp_path / "source").write_bytes(build_kdump(broken, KdumpSpec()).data)
    elf = codec_flag is None
    report = write(str(tmp_path / "source"), tmp_path / "out", codec_flag=codec_flag or 0, elf=elf)
    assert report.totals.lost == len(victims)
    image = open_image([str(tmp_path / "out")])
    for pfn in stored:
        content, state, _ = image.read_page(pfn)
        if pfn in victims:
            assert state is (PageState.ABSENT if elf else PageState.LOST)
        else:
            assert (state, content) == (PageState.STORED, source[0].content(pfn))
    image.close()


@pytest.mark.parametrize("hole", [range(40, 41), range(1), range(30, 200), range(300, 301)], ids=str)
@pytest.mark.parametrize("codec_flag", [0, 1, 2, 4, 32, None], ids=["raw", "zlib", "lzo", "snappy", "zstd", "elf"])
def test_what_an_incomplete_source_had_behind_a_hole_is_in_its_copy(source, tmp_path, codec_flag, hole):
    """As when a part of a split set is missing: the copy is flagged, and its pages are no prefix."""
    stored = source[0].where(Kind.STORED)
    victims = {stored[place] for place in hole if place < len(stored)}
    broken = source[0].changed(victims, Kind.LOST)
    for victim in victims:
        broken.pages[victim] = Page(kind=Kind.LOST, descriptor=(0, 0, 0))
    (tmp_path / "source").write_bytes(build_kdump(broken, KdumpSpec(status=9, machine="x86_64")).data)
    write(str(tmp_path / "source"), tmp_path / "out", codec_flag=codec_flag or 0, elf=codec_flag is None)
    image = open_image([str(tmp_path / "out")])
    assert not image.meta.complete
    read = {pfn for pfn in stored if image.read_page(pfn)[1] is PageState.STORED}
    assert read == set(stored) - victims
    image.close()


def test_corrupt_page_never_becomes_zeros(source, tmp_path):
    memory = source[0]
    victim = memory.where(Kind.STORED)[41]
    memory = memory.changed(set(), Kind.LOST)
    memory.pages[victim] = Page(kind=Kind.CORRUPT, stored_form=(1, b"not zlib"))
    (tmp_path / "source").write_bytes(build_kdump(memory, KdumpSpec()).data)
    write(str(tmp_path / "source"), tmp_path / "out", codec_flag=2)
    image = open_image([str(tmp_path / "out")])
    assert image.read_page(victim)[1] is PageState.LOST
    image.close()


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("elf", [False, True], ids=["kdump", "elf"])
def test_dump_that_met_its_limit_is_flagged_and_readable_and_can_be_resumed(source, tmp_path, share, elf):
    write(source[1], tmp_path / "whole", codec_flag=0 if elf else 2, elf=elf)
    whole = (tmp_path / "whole").read_bytes()
    header = 200_000 if elf else 120_000
    limit = header + int((len(whole) - header) * share)
    report = write(source[1], tmp_path / "out", codec_flag=0 if elf else 2, elf=elf, limit=limit)
    assert report.missing > 0
    image = open_image([str(tmp_path / "out")])
    assert not image.meta.complete
    for first, stop in image.stored.runs():
        data, states = image.read_run(first, stop - first)
        assert data == source[0].run(first, stop - first)[0]
        assert not states.strip(b"\0")
    image.close()
    write(source[1], tmp_path / "out", codec_flag=0 if elf else 2, elf=elf, resume=True)
    assert (tmp_path / "out").read_bytes() == whole


def test_existing_file_is_refused_and_untouched(source, tmp_path):
    from dumpfs.errors import UsageError

    (tmp_path / "out").write_text("precious")
    with pytest.raises(UsageError, match="exists"):
        write(source[1], tmp_path / "out")
    assert (tmp_path / "out").read_text() == "precious"


def test_forced_write_that_fails_leaves_the_old_file(source, tmp_path):
    (tmp_path / "out").write_text("precious")
    report = write(source[1], tmp_path / "out", force=True, limit=400_000)
    assert report.cause
    assert (tmp_path / "out").read_text() == "precious"
    assert report.names == [str(tmp_path / "out.partial")]


def test_limit_below_the_headers_leaves_nothing(source, tmp_path):
    from dumpfs.errors import IncompleteDumpError

    with pytest.raises(IncompleteDumpError, match="headers"):
        write(source[1], tmp_path / "out", limit=5000)
    assert list(tmp_path.iterdir()) == []


def test_stop_request_ends_with_a_readable_part(source, tmp_path):
    asked = iter([""])
    request = WriteRequest((source[1],), (str(tmp_path / "out"),), codec_flag=1, threads=1)
    report = write_dump(request, Hooks(stop=lambda: next(asked, "enough")))
    assert report.cause == "enough"
    image = open_image([str(tmp_path / "out")])
    assert not image.meta.complete
    image.close()


def test_check_finds_nothing_wrong_with_a_good_dump(source, tmp_path):
    assert write(source[1], tmp_path / "out", codec_flag=1, check=True).cause == ""


def test_level_without_vmcoreinfo_says_so(tmp_path):
    from dumpfs.errors import VmcoreinfoError

    (tmp_path / "source").write_bytes(build_kdump(sample(100), KdumpSpec(vmcoreinfo=b"")).data)
    with pytest.raises(VmcoreinfoError) as caught:
        write(str(tmp_path / "source"), tmp_path / "out", level=31)
    assert caught.value.hint is not None
    assert not (tmp_path / "out").exists()


def test_incomplete_source_gives_a_flagged_dump(source, tmp_path):
    whole = Path(source[1]).read_bytes()
    (tmp_path / "cut").write_bytes(whole[: len(whole) * 2 // 3])
    report = write(str(tmp_path / "cut"), tmp_path / "out", codec_flag=1)
    assert report.source_incomplete
    image = open_image([str(tmp_path / "out")])
    before = open_image([str(tmp_path / "cut")])
    assert not image.meta.complete
    there, were = ({p for run in dump.stored.runs() for p in range(*run)} for dump in (image, before))
    assert were <= there
    for pfn in were:
        assert image.read_page(pfn)[:2] == (source[0].content(pfn), PageState.STORED)
    # Behind the cut, zero pages can be read, for they share the first page of the data; the copy has them for its own.
    read = {pfn for pfn in there - were if image.read_page(pfn)[1] is PageState.STORED}
    zeros = {pfn for pfn in source[0].where(Kind.STORED) if not any(source[0].content(pfn))}
    assert read == zeros - were
    image.close()
    before.close()


def test_command_line_of_kdump_tools_works(source, tmp_path):
    line = f"-l --message-level 0 -d 1 {source[1]} {tmp_path / 'vmcore'}".split()
    done = subprocess.run([sys.executable, "-m", "dumpfs.cli.main", "write", *line], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert_same(source[0], tmp_path / "vmcore")


def test_killed_writer_leaves_a_readable_part_that_can_be_resumed(source, tmp_path):
    """SIGKILL as soon as the file is there: what is left is flagged, and resuming gives the very same dump."""
    import signal
    import time

    write(source[1], tmp_path / "whole", codec_flag=1)
    partial = tmp_path / "out.partial"
    command = [sys.executable, "-m", "dumpfs.cli.main", "write", "--message-level", "0", "-c", source[1]]
    child = subprocess.Popen([*command, str(tmp_path / "out")])
    deadline = time.monotonic() + 30
    while child.poll() is None and not (partial.exists() and partial.stat().st_size > 200_000):
        assert time.monotonic() < deadline
    child.send_signal(signal.SIGKILL)
    child.wait()
    if partial.exists():
        image = open_image([str(partial)])
        assert not image.meta.complete
        image.close()
        subprocess.run([*command, "--resume", str(tmp_path / "out")], check=True)
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()


def test_range_stores_only_its_pages(source, tmp_path):
    memory, path = source
    write(path, tmp_path / "out", begin=1000 * PAGE + 5, length=100 * PAGE)
    image = open_image([str(tmp_path / "out")])
    found = [pfn for first, stop in image.stored.runs() for pfn in range(first, stop)]
    image.close()
    assert found == [pfn for pfn in memory.where(Kind.STORED) if 1000 <= pfn <= 1100]


def test_list_of_levels_takes_the_next_one_when_there_is_no_room(source, tmp_path):
    write(source[1], tmp_path / "small", codec_flag=0, level=1)
    limit = (tmp_path / "small").stat().st_size + 4096
    line = f"-d 0,1 -L {limit} --message-level 0 {source[1]} {tmp_path / 'out'}".split()
    memory = sample()
    zero_apart = build_kdump(
        Memory(
            PAGE,
            memory.max_pfn,
            {p: (Page(page.data) if page.codec == "zero" else page) for p, page in memory.pages.items()},
        ),
        KdumpSpec(),
    )
    (tmp_path / "source").write_bytes(zero_apart.data)
    line[-2] = str(tmp_path / "source")
    done = subprocess.run([sys.executable, "-m", "dumpfs.cli.main", "write", *line], check=False)
    assert done.returncode == 0
    assert_same(memory, tmp_path / "out")


def run_write(*line: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dumpfs.cli.main", "write", "--message-level", "4", *map(str, line)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def unshared(tmp_path: Path) -> Path:
    """A dump whose zero pages have a copy each, so that levels 0 and 1 differ."""
    pages = {pfn: Page(bytes(PAGE) if pfn % 2 else (b"page %4d" % pfn * 500)[:PAGE]) for pfn in range(2000)}
    path = tmp_path / "unshared"
    path.write_bytes(build_kdump(Memory(PAGE, 2000, pages), KdumpSpec()).data)
    return path


def test_resume_finds_the_level_of_a_list(unshared, tmp_path):
    out = tmp_path / "out"
    assert run_write("-d", "0,1", "-L", "3M", unshared, out).returncode == 8
    done = run_write("-d", "0,1", "--resume", unshared, out)
    assert (done.returncode, done.stderr) == (0, "")
    assert run_write("-d", "1", unshared, tmp_path / "plain").returncode == 0
    assert out.read_bytes() == (tmp_path / "plain").read_bytes()


def test_incomplete_dump_keeps_its_name_when_it_is_not_the_one_to_resume(unshared, tmp_path):
    out = tmp_path / "out"
    assert run_write("-d", "0", "-L", "3M", unshared, out).returncode == 8
    before = out.read_bytes()
    assert run_write("-d", "1", "--resume", unshared, out).returncode == 2
    assert out.read_bytes() == before
    assert not (tmp_path / "out.partial").exists()


def test_null_device_takes_a_dump(source):
    done = run_write("-c", source[1], "/dev/null")
    assert (done.returncode, done.stderr) == (0, "")


def test_early_end_of_a_stream_does_not_speak_of_resuming(source, tmp_path):
    done = run_write("-F", "-L", "1M", source[1], tmp_path / "out")
    assert done.returncode == 8
    assert "pages are missing" in done.stderr
    assert "--resume" not in done.stderr


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("OSRELEASE=1.2.3-other\nSIZE(page)=64\n", 2, "the file of -i is of another kernel: 1.2.3-other"),
        ("this is no VMCOREINFO\n", 6, "OSRELEASE"),
    ],
    ids=["another kernel", "nonsense"],
)
def test_vmcoreinfo_file_that_does_not_fit_is_refused(data, tmp_path, text, code, said):
    (tmp_path / "info").write_text(text)
    done = run_write("-i", tmp_path / "info", "-d", "31", data("mkd-raw-d31.kdump"), tmp_path / "out")
    assert done.returncode == code
    assert said in done.stderr
    assert not (tmp_path / "out").exists()


def test_debug_messages_tell_what_is_known_of_the_kernel(data, tmp_path):
    done = run_write("-D", "-d", "31", data("mkd-raw-d31.kdump"), tmp_path / "out")
    assert done.returncode == 0
    assert "kernel: 6.1.192-dumpfs-tiny" in done.stderr
    assert "kaslr_offset: 0x0" in done.stderr


@pytest.mark.parametrize("size", [0, 1, 4096, 5000, 9000, 14000])
@pytest.mark.parametrize("elf", [False, True], ids=["kdump", "elf"])
def test_dump_killed_while_its_headers_were_written_can_be_resumed(source, tmp_path, size, elf):
    write(source[1], tmp_path / "whole", elf=elf)
    limit = (tmp_path / "whole").stat().st_size // 2
    report = write(source[1], tmp_path / "out", elf=elf, limit=limit)
    assert report.missing
    os.truncate(tmp_path / "out", size)
    os.rename(tmp_path / "out", tmp_path / "out.partial")
    write(source[1], tmp_path / "out", elf=elf, resume=True)
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("threads", [1, 2, 99])
def test_source_is_read_ahead_for_as_many_workers_as_can_work(source, tmp_path, monkeypatch, threads):
    opened: list[int] = []

    class Watched(FileSource):
        def __init__(self, path, *, readers=0):
            opened.append(readers)
            super().__init__(path, readers=readers)

    monkeypatch.setattr("dumpfs.formats.detect.FileSource", Watched)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(3)))
    write_dump(WriteRequest((source[1],), (str(tmp_path / "out"),), threads=threads), Hooks())
    assert opened == [min(threads, 3)]


@pytest.mark.parametrize("layout", ["64", "32packed"])
@pytest.mark.parametrize("seconds", [1, 1700000000, (1 << 31) - 1, 1 << 31, 1 << 40, 1 << 63, -5])
def test_time_of_crash_is_kept_where_the_header_can_hold_it(tmp_path, layout, seconds):
    bits = 63 if layout == "64" else 31
    info = f"OSRELEASE=6.1.0\nCRASHTIME={seconds}\n".encode()
    spec = KdumpSpec(layout=layout, machine="x86_64" if layout == "64" else "i686", vmcoreinfo=info)
    (tmp_path / "source").write_bytes(build_kdump(Memory(PAGE, 9, {3: Page(b"x" * PAGE)}), spec).data)
    write(str(tmp_path / "source"), tmp_path / "out")
    written = parse_header(FileSource(tmp_path / "out")).main["tv_sec"]
    assert written == (seconds if 0 < seconds < 1 << bits else 0)
