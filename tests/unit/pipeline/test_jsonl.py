"""Rows come out of JSONL files with their place, whatever wrote the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anneal_pipeline.data.jsonl import (
    INVALID_ENCODING,
    INVALID_JSON,
    NOT_AN_OBJECT,
    BadRow,
    SourceRow,
    read_rows,
)
from anneal_pipeline.errors import DATASET_UNREADABLE, UserError

ROWS = [{"a": "ä"}, {"a": "two"}]
TEXT = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(TEXT.encode(), id="plain UTF-8"),
        pytest.param(TEXT.encode("utf-8-sig"), id="byte order mark"),
        pytest.param(TEXT.encode("utf-16"), id="UTF-16"),
        pytest.param(TEXT.replace("\n", "\r\n").encode(), id="CRLF"),
        pytest.param(TEXT.rstrip("\n").encode(), id="no newline at the end"),
    ],
)
def test_reads_whatever_editors_write(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(data)
    rows = list(read_rows(path))
    assert [row.fields for row in rows if isinstance(row, SourceRow)] == ROWS
    assert [row.place.line for row in rows] == [1, 2]
    assert {row.place.file for row in rows} == {"rows.jsonl"}


def test_empty_lines_count_as_lines_but_not_as_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('\n{"a": 1}\n\n\n{"a": 2}\n')
    assert [row.place.line for row in read_rows(path)] == [2, 5]


@pytest.mark.parametrize(
    ("line", "want"),
    [
        pytest.param(b'{"a": ', INVALID_JSON, id="cut off"),
        pytest.param(b"[1, 2]", NOT_AN_OBJECT, id="a list"),
        pytest.param(b'{"a": "\xff\xfe"}', INVALID_ENCODING, id="not UTF-8"),
        pytest.param(b"[" * 100_000, INVALID_JSON, id="nested beyond reason"),
    ],
)
def test_names_what_is_wrong_with_a_row(tmp_path: Path, line: bytes, want: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b"\n")
    _, bad = read_rows(path)
    assert isinstance(bad, BadRow)
    assert (bad.reason, bad.place.line) == (want, 2)
    assert len(bad.preview) <= 200


@pytest.mark.parametrize("magic", [b"\x1f\x8b\x08\x00", b"PAR1", b"PK\x03\x04"])
def test_refuses_files_that_are_no_text(tmp_path: Path, magic: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(magic + b"\x00" * 20)
    with pytest.raises(UserError, match=r"rows\.jsonl is a .* file, expected JSONL") as caught:
        list(read_rows(path))
    assert caught.value.reason == DATASET_UNREADABLE


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300))
def test_no_bytes_make_it_fail_otherwise(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(data)
    try:
        rows = list(read_rows(path))
    except UserError:
        return
    assert all(isinstance(row, SourceRow | BadRow) for row in rows)
