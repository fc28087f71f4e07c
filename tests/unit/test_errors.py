"""What a user sees of an error: words, hint, exit code, errno."""

from __future__ import annotations

import errno

import pytest

from dumpfs import errors
from dumpfs.errors import DumpfsError
from dumpfs.units import PageState

CASES = [
    (DumpfsError("words"), 1, errno.EIO),
    (errors.UsageError("words"), 2, errno.EINVAL),
    (errors.SourceError("f", "words"), 1, errno.EIO),
    (errors.FormatError("f", "words"), 3, errno.EIO),
    (errors.UnknownFormatError("f", "words"), 3, errno.EINVAL),
    (errors.UnsupportedFeatureError("f", "words"), 3, errno.ENOTSUP),
    (errors.CorruptDumpError("f", "words"), 4, errno.EIO),
    (errors.TruncatedDumpError("f", "words"), 4, errno.EIO),
    (errors.CodecError("lzo", "words"), 4, errno.EIO),
    (errors.CodecUnavailableError("lzo", "package"), 5, errno.ENOTSUP),
    (errors.PageError(1, PageState.LOST), 4, errno.EIO),
    (errors.ExcludedPageError(1), 4, errno.ENODATA),
    (errors.AbsentPageError(1), 4, errno.ENXIO),
    (errors.TranslationError(1, "words"), 6, errno.EFAULT),
    (errors.VmcoreinfoError("SYMBOL(prb)"), 6, errno.ENODATA),
    (errors.MountError("words"), 7, errno.EIO),
    (errors.WriteError("words"), 8, errno.EIO),
    (errors.IncompleteDumpError("words"), 8, errno.ENOSPC),
]


@pytest.mark.parametrize(("error", "exit_code", "number"), CASES, ids=lambda v: type(v).__name__)
def test_exit_code_and_errno(error, exit_code, number):
    assert (error.exit_code, error.errno) == (exit_code, number)


def test_a_format_error_names_the_place():
    assert str(errors.CorruptDumpError("dump", "block_size 3", offset=428)) == "dump: block_size 3 at offset 0x1ac"


def test_a_hint_is_kept_apart_from_the_message():
    error = errors.CodecUnavailableError("lzo", "python-lzo")
    assert error.hint == "pip install python-lzo"
    assert "pip" not in str(error)


def test_a_page_error_names_the_page_and_its_state():
    assert str(errors.PageError(0x1F, PageState.CORRUPT, "why")) == "page 0x1f is corrupt (why)"


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        (PageState.EXCLUDED, errors.ExcludedPageError),
        (PageState.ABSENT, errors.AbsentPageError),
        (PageState.LOST, errors.PageError),
        (PageState.CORRUPT, errors.PageError),
    ],
)
def test_the_narrowest_page_error_is_made(state, kind):
    error = errors.page_error(7, state)
    assert type(error) is kind
    assert (error.pfn, error.state) == (7, state)


def test_messages_are_one_line():
    for error, _, _ in CASES:
        assert "\n" not in str(error)
