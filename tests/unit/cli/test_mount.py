"""What `dumpfs mount` and `mount.dumpfs` decide before anything is mounted."""

from __future__ import annotations

import pytest

from dumpfs.cli import mount_helper
from dumpfs.cli.main import main, verb_parser


def test_options_of_mount_are_collected_in_order():
    args = verb_parser("mount").parse_args(["-o", "a,b", "-f", "x", "y", "z", "-o", "c"])
    assert args.options == ["a,b", "c"]
    assert args.paths == ["x", "y", "z"]
    assert args.foreground
    assert not args.debug


def test_options_are_checked_before_the_dump(capsys, tmp_path):
    assert main(["mount", "-o", "holes=no", str(tmp_path / "nothing"), str(tmp_path)]) == 2
    assert "holes" in capsys.readouterr().err


def test_mount_point_is_checked_before_the_dump(capsys, tmp_path):
    assert main(["mount", str(tmp_path / "nothing"), str(tmp_path / "nowhere")]) == 7
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["defaults", "nofail", "user=me", "x-gvfs-show", "_netdev", "rw", "relatime", "uhelper=x"]
)
def test_helper_ignores_what_is_mount_8s_own(name):
    assert mount_helper.own_options([f"{name},holes=zero"], sloppy=False) == ["holes=zero"]


def test_helper_keeps_unknown_options_unless_sloppy():
    assert mount_helper.own_options(["nonsense,holes=zero"], sloppy=False) == ["nonsense", "holes=zero"]
    assert mount_helper.own_options(["nonsense,holes=zero"], sloppy=True) == ["holes=zero"]


def test_helper_keeps_escaped_commas():
    assert mount_helper.own_options([r"log=a\,b\\c"], sloppy=False) == [r"log=a\,b\\c"]


def test_helper_help_lists_the_options(capsys):
    with pytest.raises(SystemExit):
        mount_helper.main(["--help"])
    out = capsys.readouterr().out
    assert "holes=zero|error" in out
    assert "part=FILE" in out
