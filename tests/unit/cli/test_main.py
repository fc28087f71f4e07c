"""The command: verbs, messages and exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dumpfs import __version__
from dumpfs.cli import main as cli
from dumpfs.cli.common import one_line
from dumpfs.errors import MountError, SourceError, UsageError

DUMPFS = str(Path(sys.executable).parent / "dumpfs")


def run(*arguments: str, **kwargs) -> subprocess.CompletedProcess[str]:
    return subprocess.run([DUMPFS, *arguments], capture_output=True, text=True, timeout=60, check=False, **kwargs)


@pytest.fixture
def verb(monkeypatch):
    """A verb `test` that does what the test says."""

    def define(function):
        module = type(sys)("verb")
        module.add_arguments = lambda parser: parser.add_argument("names", nargs="*")
        module.run = function
        monkeypatch.setitem(sys.modules, "verb", module)
        monkeypatch.setitem(cli.VERBS, "test", cli.Verb("verb", "a verb of the test"))

    return define


def test_help_names_every_verb():
    done = run("--help")
    assert done.returncode == 0
    for name, entry in cli.VERBS.items():
        assert f"  {name} " in done.stdout
        assert entry.help in done.stdout


def test_version():
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"dumpfs {__version__}\n")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["mount", "--help"], ["umount", "--help"]])
def test_help_loads_neither_pyfuse3_nor_a_codec(arguments):
    script = (
        "import sys\nfrom dumpfs.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "heavy = {'pyfuse3', 'trio', 'numpy', 'lzo', 'deflate', 'cramjam', 'zstandard', 'lzallright'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", list(cli.VERBS))
def test_every_verb_has_a_parser(name):
    assert cli.verb_parser(name).prog == f"dumpfs {name}"
    assert cli.VERBS[name].help[0].islower()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no verb given"),
        (["nonsense"], "no verb 'nonsense'"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["umount"], "umount: the following arguments are required: MOUNTPOINT"),
        (["mount", "only-one"], "mount: a dump and a mount point are needed"),
        (["mount", "-o", "nonsense", "a", "b"], "-o nonsense: unknown option"),
        (["cat", "--offset=-1", "a", "b"], "cat: argument --offset: '-1' is not a number of bytes"),
        (["check", "--jobs", "0", "a"], "check: argument --jobs: '0' is not a number of processes"),
    ],
)
def test_usage_error_is_one_line_a_hint_and_2(arguments, message, capsys):
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0] == f"dumpfs: {message}"
    assert lines[1].startswith("hint: ")
    assert len(lines) == 2


def test_failure_is_a_message_a_hint_and_its_exit_code(verb, capsys):
    def fail(_args):
        raise MountError("/mnt: is on\nfire", hint="water")

    verb(fail)
    assert cli.main(["test"]) == 7
    assert capsys.readouterr().err == "dumpfs: /mnt: is on\\nfire\nhint: water\n"


def test_failure_without_a_hint_is_one_line(verb, capsys):
    def fail(_args):
        raise SourceError("file", "problem")

    verb(fail)
    assert cli.main(["test"]) == 1
    assert capsys.readouterr().err == "dumpfs: file: problem\n"


def test_interrupt_is_130(verb, capsys):
    def fail(_args):
        raise KeyboardInterrupt

    verb(fail)
    assert cli.main(["test"]) == 130
    assert capsys.readouterr().err == ""


def test_operating_system_error_names_the_file(verb, capsys):
    verb(lambda _args: os.stat("/nonexistent/file"))
    assert cli.main(["test"]) == 1
    assert capsys.readouterr().err == "dumpfs: /nonexistent/file: No such file or directory\n"


def test_exit_code_is_the_verbs(verb):
    verb(lambda _args: 8)
    assert cli.main(["test"]) == 8


def test_arguments_reach_the_verb(verb):
    seen = []
    verb(lambda args: seen.append(args.names) or 0)
    assert cli.main(["test", "a", "--", "-b"]) == 0
    assert seen == [["a", "-b"]]


PRINTING = """
import sys, types, dumpfs.cli.main as cli
def run(args):
    for _ in range(10000):
        print('x' * 100)
    return 0
sys.modules['verb'] = module = types.ModuleType('verb')
module.add_arguments, module.run = lambda parser: None, run
cli.VERBS['test'] = cli.Verb('verb', 'test')
sys.exit(cli.main(['test']))
"""


def test_reader_that_leaves_early_ends_us_as_sigpipe_would():
    process = subprocess.Popen([sys.executable, "-c", PRINTING], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr is not None
    errors = process.stderr.read()
    process.stderr.close()
    assert (process.wait(30), errors) == (141, b"")


def test_full_output_device_is_an_error():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", PRINTING], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (1, "dumpfs: No space left on device\n")


def test_unprintable_characters_do_not_reach_the_terminal():
    assert one_line("a\x1b[31mb\nc\u202e") == "a\\x1b[31mb\\nc\\u202e"
    assert one_line("grün") == "grün"


def test_closed_standard_streams_do_no_harm():
    done = subprocess.run(f"{DUMPFS} nonsense <&- >&- 2>&-", shell=True, check=False)
    assert done.returncode == 2


def test_process_ends_with_its_output_flushed_and_what_was_registered_called():
    program = PRINTING.replace("sys.exit(cli.main(['test']))", "sys.argv[1:] = ['test']") + (
        "import atexit\natexit.register(print, 'registered')\nsys.exit(3 + cli.main())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert (done.returncode, len(lines), lines[-1], done.stderr) == (0, 10001, "registered", "")


def test_usage_error_has_its_code():
    assert UsageError("x").exit_code == 2
    assert os.path.exists(DUMPFS)


def test_want_of_memory_is_one_line(verb, capsys):
    def fail(args):
        raise MemoryError

    verb(fail)
    assert cli.main(["test"]) == 1
    assert capsys.readouterr().err == "dumpfs: not enough memory for what the dump asks for\n"
