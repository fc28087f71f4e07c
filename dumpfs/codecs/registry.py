"""Which codec a page flag means, and which library serves it here.

Best library first, then the next: a codec whose libraries are all missing costs only its own pages. A new codec
is one file and one line in `_CODECS`.
"""

from __future__ import annotations

from importlib import import_module

from dumpfs.codecs.base import Codec
from dumpfs.errors import CodecUnavailableError

ZLIB, LZO, SNAPPY, ZSTD = 0x1, 0x2, 0x4, 0x20
"""Flags of a page descriptor (makedumpfile diskdump_mod.h)."""

_CODECS: dict[int, tuple[str, str, tuple[str, ...]]] = {
    ZLIB: ("zlib", "dumpfs.codecs.zlib", ("DeflateZlib", "StandardZlib")),
    LZO: ("lzo", "dumpfs.codecs.lzo", ("AllrightLzo", "PythonLzo")),
    SNAPPY: ("snappy", "dumpfs.codecs.snappy", ("CramjamSnappy",)),
    ZSTD: ("zstd", "dumpfs.codecs.zstd", ("StandardZstd",)),
}
_PACKAGES = {ZLIB: "deflate", LZO: "lzallright python-lzo", SNAPPY: "cramjam", ZSTD: "zstandard"}

CODEC_FLAGS = tuple(_CODECS)
"""The compression bits a page descriptor or a header status may have."""
CODEC_MASK = ZLIB | LZO | SNAPPY | ZSTD

_opened: dict[int, Codec | CodecUnavailableError] = {}


def codec_name(flag: int) -> str:
    """'zlib' ... for one flag, 'raw' for 0, '' for anything else."""
    if not flag:
        return "raw"
    return _CODECS[flag][0] if flag in _CODECS else ""


def codec(flag: int) -> Codec:
    """The codec of one page flag.

    Raises:
        CodecUnavailableError: no library for it is installed; the message names the package.
        KeyError: `flag` is not one codec's bit.
    """
    found = _opened.get(flag)
    if found is None:
        found = _opened[flag] = _open(flag)
    if isinstance(found, CodecUnavailableError):
        raise found
    return found


def _open(flag: int) -> Codec | CodecUnavailableError:
    name = _CODECS[flag][0]
    return next(iter(implementations(flag)), None) or CodecUnavailableError(name, _PACKAGES[flag])


def implementations(flag: int) -> list[Codec]:
    """Every implementation of a codec whose library is installed, the preferred one first."""
    _, module_name, classes = _CODECS[flag]
    module = import_module(module_name)
    found: list[Codec] = []
    for class_name in classes:
        try:
            found.append(getattr(module, class_name)())
        except ImportError:
            continue
    return found
