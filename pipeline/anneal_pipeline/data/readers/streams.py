"""The bytes of a dataset file: uncompressed and in UTF-8, whatever is on the disk.

Compression goes by the first bytes, not by the name, and so does the encoding where the job names
none: UTF-8 with or without byte order mark, UTF-16 with one or recognised by its zero bytes.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from anneal_pipeline.data.readers.encodings import AUTO, UTF_8, UTF_16, to_utf8
from anneal_pipeline.errors import DATASET_UNREADABLE, UserError

_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_REFUSED = {
    b"PK\x03\x04": "a zip archive",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ": "an xz file",
    b"\xd0\xcf\x11\xe0": "an old Excel file",
}
_BUFFER_BYTES = 1 << 20
_UTF_8_MARKED = "utf-8-sig"
_UTF_16_LE, _UTF_16_BE = "utf-16-le", "utf-16-be"
_UTF_16 = (UTF_16, _UTF_16_LE, _UTF_16_BE)


def compression_of(path: Path) -> str | None:
    with path.open("rb") as file:
        start = file.read(6)
    for magic, kind in _REFUSED.items():
        if start.startswith(magic):
            raise UserError(
                DATASET_UNREADABLE,
                f"{path.name} is {kind}, expected JSONL, JSON, CSV or Parquet, plain or compressed "
                "with gzip or zstd; convert it first",
            )
    return next((name for magic, name in _COMPRESSED.items() if start.startswith(magic)), None)


@contextmanager
def open_utf8(path: Path, *, encoding: str = AUTO) -> Iterator[io.BufferedReader]:
    """The file's content as UTF-8 without byte order mark; damage becomes a `UserError`.

    Bytes that are not of the encoding are no UTF-8 here either, but in UTF-16, which they end.
    """
    with damage_named(path):
        compression = compression_of(path)
        raw = pa.input_stream(str(path), compression=compression)
        found = _encoding_of(raw.read(4))
        raw.close()
        if encoding != AUTO:
            found = _declared(encoding, found=found, path=path)
        raw = pa.input_stream(str(path), compression=compression)
        if found == _UTF_8_MARKED:
            raw.read(len(codecs.BOM_UTF8))
        elif found in _UTF_16:
            raw = pa.transcoding_input_stream(raw, found, UTF_8)
        elif found != UTF_8:
            raw = pa.TransformInputStream(raw, to_utf8(found))
        with io.BufferedReader(raw, _BUFFER_BYTES) as stream:
            yield stream


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """What Arrow says of a file it cannot read, as a sentence for the one who wrote the file."""
    try:
        yield
    except UnicodeError as error:
        raise _unreadable(
            path, f"its text breaks off, or is not in the encoding it is read in ({error})"
        ) from error
    except pa.ArrowException as error:
        raise _unreadable(path, str(error)) from error
    except OSError as error:
        # Arrow's own errors have no number; what the operating system says is no user's mistake.
        if error.errno is not None:
            raise
        raise _unreadable(path, str(error)) from error


def _unreadable(path: Path, cause: str) -> UserError:
    return UserError(
        DATASET_UNREADABLE,
        f"{path.name} cannot be read: {cause}; write the file anew, or set dataset.format if it is "
        "of another format than its name says",
    )


def _encoding_of(start: bytes) -> str:
    if start.startswith(codecs.BOM_UTF8):
        return _UTF_8_MARKED
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return UTF_16
    if len(start) == 4 and start[1] == start[3] == 0 and start[0] and start[2]:
        return _UTF_16_LE
    if len(start) == 4 and start[0] == start[2] == 0 and start[1] and start[3]:
        return _UTF_16_BE
    return UTF_8


def _declared(encoding: str, *, found: str, path: Path) -> str:
    """How to read a file that the job says is of `encoding`; `found` is what its start tells."""
    marked = {_UTF_8_MARKED: UTF_8, UTF_16: UTF_16}.get(found)
    if marked not in (None, encoding):
        raise UserError(
            DATASET_UNREADABLE,
            f"{path.name} begins with the byte order mark of {marked}, but dataset.encoding is "
            f"{encoding}; remove dataset.encoding, or save the file as {encoding}",
        )
    if encoding == UTF_16:
        return found if found in _UTF_16 else _UTF_16_LE
    return found if marked else encoding
