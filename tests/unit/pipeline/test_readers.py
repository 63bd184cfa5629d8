"""Rows come out of data files with their place, whatever wrote the file."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anneal_pipeline.data.readers.choice import format_of, read_rows
from anneal_pipeline.data.rows import (
    INVALID_ENCODING,
    INVALID_JSON,
    NOT_AN_OBJECT,
    WRONG_COLUMN_COUNT,
    BadRow,
    SourceRow,
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


DAMAGED = [
    pytest.param("rows.jsonl", b"PK\x03\x04" + bytes(20), "is a zip archive", id="zip"),
    pytest.param("rows.jsonl", b"\x1f\x8b\x08\x00" + bytes(20), "cannot be read", id="gzip"),
    pytest.param("rows.parquet", b"PAR1" + bytes(20), "cannot be read", id="Parquet"),
    pytest.param("rows.jsonl.gz", gzip.compress(TEXT.encode() * 99)[:-9], "cannot", id="cut gzip"),
    pytest.param("rows.json", b'[{"a": 1}, {"a": ', "behind row 1", id="cut JSON"),
    pytest.param("rows.json", b'[{"a": "\xe4"}]', "not valid JSON", id="Latin-1 JSON"),
    pytest.param("rows.json", b'[{"a": "\xe4"}]', "set dataset.encoding", id="JSON, next step"),
    pytest.param("rows.csv", b"gr\xf6\xdfe,b\n1,2\n", "set dataset.encoding", id="Latin-1 header"),
    pytest.param("rows.csv", b"a,b,a\n1,2,3\n", "column 'a' twice", id="columns of one name"),
    pytest.param("rows.csv", b'"a,b\n' + b"1,2\n" * 70_000, "cannot be", id="a quote left open"),
    pytest.param("rows.txt", b"hello there\n", "does not tell its format", id="no format at all"),
]


@pytest.mark.parametrize(("name", "data", "want"), DAMAGED)
def test_a_file_that_cannot_be_read_is_named_with_the_cause(
    tmp_path: Path, name: str, data: bytes, want: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(UserError, match=want) as caught:
        list(read_rows(path))
    assert caught.value.reason == DATASET_UNREADABLE
    assert name in caught.value.message


def test_a_broken_line_has_one_number(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": 1 "b": 2}\n')
    _, bad = read_rows(path)
    assert isinstance(bad, BadRow)
    assert bad.place.line == 2
    assert bad.detail == "is not valid JSON (Expecting ',' delimiter, column 9)"


def test_latin_1_is_named_as_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"a": "one"}\n{"a": "Gr\u00f6\u00dfe"}\n'.encode("latin-1"))
    _, bad = read_rows(path)
    assert isinstance(bad, BadRow)
    assert (bad.reason, bad.place.line) == (INVALID_ENCODING, 2)
    assert "as Latin-1 it reads" in bad.detail
    assert "Gr\u00f6\u00dfe" in bad.detail
    assert "set dataset.encoding (to cp1252 if that reads right)" in bad.detail


FIELDS = [{"q": "\u00e4", "a": "x"}, {"q": "two\nlines", "a": "y, z"}, {"q": "3"}]


def write_format(path: Path, kind: str) -> Path:
    """The same three rows in every format."""
    if kind in ("parquet", "datasets"):
        table = pa.Table.from_pylist(FIELDS)
        if kind == "parquet":
            pq.write_table(table, path)
        else:
            datasets.Dataset(table).save_to_disk(str(path))
        return path
    if kind == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["q", "a"])
            writer.writeheader()
            writer.writerows(FIELDS)
    elif kind == "json":
        path.write_text(json.dumps(FIELDS, indent=1))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in FIELDS))
    return path


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "parquet", "datasets"])
def test_every_format_gives_the_same_rows_and_is_recognised(tmp_path: Path, kind: str) -> None:
    path = write_format(tmp_path / f"rows.{kind}", kind)
    assert format_of(path) == kind
    for wanted in ("auto", kind):
        rows = list(read_rows(path, wanted=wanted))
        assert [row.fields for row in rows if isinstance(row, SourceRow)] == FIELDS
    assert [row.place.line for row in rows] == ([2, 3, 4] if kind == "csv" else [1, 2, 3])


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv"])
@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_compression_goes_by_content(tmp_path: Path, kind: str, codec: str) -> None:
    plain = write_format(tmp_path / f"plain.{kind}", kind).read_bytes()
    path = tmp_path / f"rows.{kind}.{'gz' if codec == 'gzip' else 'zst'}"
    with pa.output_stream(str(path), compression=codec) as file:
        file.write(plain)
    assert [row.fields for row in read_rows(path) if isinstance(row, SourceRow)] == FIELDS


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("kind", ["json", "jsonl", "csv"])
def test_encodings_of_every_text_format(tmp_path: Path, kind: str, encoding: str) -> None:
    path = write_format(tmp_path / f"rows.{kind}", kind)
    path.write_bytes(path.read_text(encoding="utf-8").encode(encoding))
    assert [row.fields for row in read_rows(path) if isinstance(row, SourceRow)] == FIELDS


@pytest.mark.parametrize(
    "text",
    [
        pytest.param('{"q": "1"}\n{"q": "2"}\n', id="JSON lines"),
        pytest.param('{\n "q": "1"\n}\n{\n "q": "2"\n}', id="objects over several lines"),
        pytest.param('\n [{"q": "1"},\n{"q": "2"}]', id="an array"),
    ],
)
def test_what_json_files_hold(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    rows = list(read_rows(path))
    assert [row.fields["q"] for row in rows if isinstance(row, SourceRow)] == ["1", "2"]


def test_csv_from_a_spreadsheet(tmp_path: Path) -> None:
    """Semicolons, byte order mark, CRLF, empty cells, numbers, a row too wide, one not UTF-8."""
    path = tmp_path / "rows.csv"
    path.write_bytes(
        b"\xef\xbb\xbfq;a\r\n1;one\r\n;two\r\n\r\n3;drei;zuviel\r\n4;f\xfcnf\r\n5;NA\r\n"
    )
    rows = list(read_rows(path))
    assert [(row.place.line, row.fields) for row in rows if isinstance(row, SourceRow)] == [
        (2, {"q": "1", "a": "one"}),
        (3, {"a": "two"}),
        (7, {"q": "5", "a": "NA"}),
    ]
    assert [(row.place.line, row.reason) for row in rows if isinstance(row, BadRow)] == [
        (5, WRONG_COLUMN_COUNT),
        (6, INVALID_ENCODING),
    ]


@pytest.mark.parametrize(
    ("text", "want"),
    [
        pytest.param('"a\nx",b\n1,2\n', {"a\nx": "1", "b": "2"}, id="a line end in quotes"),
        pytest.param('"a, or x";b\n1;2\n', {"a, or x": "1", "b": "2"}, id="a comma in quotes"),
        pytest.param('"a;b;c",d\n1,2\n', {"a;b;c": "1", "d": "2"}, id="semicolons in quotes"),
        pytest.param("a,b\r1,2\r", {"a": "1", "b": "2"}, id="lines as old Macs end them"),
    ],
)
def test_the_header_of_a_csv_may_quote(tmp_path: Path, text: str, want: dict[str, str]) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text, newline="")
    assert [row.fields for row in read_rows(path) if isinstance(row, SourceRow)] == [want]


def test_arrow_fills_no_nulls_into_tools(tmp_path: Path) -> None:
    """Pitfall: Arrow fills nulls into unioned schemas of tools.

    Structs of one column share their keys in Arrow; what a row did not have it does not get.
    """
    rows = [
        {"tools": [{"name": "add", "parameters": {"x": 1}}]},
        {"tools": [{"name": "say", "parameters": {"text": "hi"}}]},
    ]
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    assert [row.fields for row in read_rows(path) if isinstance(row, SourceRow)] == rows


# Arrow prints that it cannot decode a row of the wrong width, and then refuses the file.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300), kind=st.sampled_from(["jsonl", "json", "csv", "parquet", "x"]))
def test_no_bytes_make_it_fail_otherwise(tmp_path: Path, data: bytes, kind: str) -> None:
    path = tmp_path / f"rows.{kind}"
    path.write_bytes(data)
    try:
        rows = list(read_rows(path))
    except UserError:
        return
    assert all(isinstance(row, SourceRow | BadRow) for row in rows)
