"""`dumpfs umount` where nothing of ours is mounted."""

from __future__ import annotations

from dumpfs.cli.main import main


def test_what_is_not_mounted_is_told(capsys, tmp_path):
    assert main(["umount", str(tmp_path)]) == 7
    assert capsys.readouterr().err == (
        f"dumpfs: {tmp_path}: nothing is mounted there\nhint: the mounts: findmnt -t fuse.dumpfs\n"
    )


def test_another_file_system_is_left_alone(capsys):
    assert main(["umount", "/proc"]) == 7
    assert capsys.readouterr().err == "dumpfs: /proc: is not a dump but a mount of type proc\nhint: umount /proc\n"
