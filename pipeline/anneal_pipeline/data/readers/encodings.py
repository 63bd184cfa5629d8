"""The encodings of `dataset.encoding` on their way to UTF-8, and what is not of them."""

from __future__ import annotations

import codecs
from collections.abc import Callable

from anneal_pipeline.data.rows import INVALID_ENCODING, BadRow, Place, preview_of

AUTO = "auto"
UTF_8 = "utf-8"
UTF_16 = "utf-16"

_CODECS = {
    "latin-1": "latin-1",
    "cp1250": "cp1250",
    "cp1251": "cp1251",
    "cp1252": "cp1252",
    "shift_jis": "cp932",
    "gb18030": "gb18030",
    "big5": "cp950",
    "euc-kr": "cp949",
}
"""Names of Python's codecs. Those of Windows hold all of the plain ones, and spreadsheets write
them by the plain names."""


def _mark(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return _IN_NO_UTF_8, error.start + 1


_MARKED = "anneal-marked"
_IN_NO_UTF_8 = "\udcff"
"""What surrogateescape encodes to 0xFF."""
codecs.register_error(_MARKED, _mark)


def to_utf8(encoding: str) -> Callable[[bytes], bytes]:
    """Transcodes a stream part by part, and what is left over when it gets an empty one.

    Each byte that the encoding does not have becomes one that is in no UTF-8, so that the readers
    leave out the rows it stands in and no others. As they are, two may be a letter in UTF-8.
    """
    decoder = codecs.getincrementaldecoder(_CODECS[encoding])(errors=_MARKED)

    def transcode(part: bytes) -> bytes:
        text = decoder.decode(bytes(part), final=not len(part))
        return text.encode("utf-8", errors="surrogateescape")

    return transcode


def undecodable(data: bytes, *, place: Place, what: str, encoding: str) -> BadRow:
    return BadRow(
        place=place,
        reason=INVALID_ENCODING,
        detail=f"{what} {why_undecodable(data, encoding=encoding)}",
        preview=preview_of(data.decode("utf-8", "replace").strip()),
    )


def why_undecodable(data: bytes, *, encoding: str) -> str:
    """Of bytes that are not of the file's encoding, on its way to UTF-8; and where the job names
    none, what they look like if they are of an older one."""
    if encoding not in (AUTO, UTF_8):
        return f"not valid {encoding}; correct dataset.encoding, or save the file as UTF-8"
    text = data.decode("cp1252", "replace").strip()
    bad = next((i for i, char in enumerate(text) if not char.isascii()), 0)
    shown = text[max(0, bad - 12) : bad + 12]
    return (
        f"not valid UTF-8 (as Latin-1 it reads {shown!r}); set dataset.encoding (to cp1252 if "
        "that reads right), or save the file as UTF-8"
    )
