"""The encodings that `dataset.encoding` may name, on their way to UTF-8."""

from __future__ import annotations

import codecs
from collections.abc import Callable

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


def to_utf8(encoding: str) -> Callable[[bytes], bytes]:
    """Transcodes a stream part by part, and what is left over when it gets an empty one.

    Bytes that the encoding does not have stay as they are. They are no UTF-8 then, so that the
    readers leave out the rows they stand in and no others.
    """
    decoder = codecs.getincrementaldecoder(_CODECS[encoding])(errors="surrogateescape")

    def transcode(part: bytes) -> bytes:
        text = decoder.decode(bytes(part), final=not len(part))
        return text.encode("utf-8", errors="surrogateescape")

    return transcode
