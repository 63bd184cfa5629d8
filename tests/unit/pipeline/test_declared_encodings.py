"""Files in the encodings of their countries, read as `dataset.encoding` says."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.pipeline.bench import Bench

from anneal_pipeline.config.dataset import DatasetConfig
from anneal_pipeline.config.schema import ConfigError
from anneal_pipeline.data.files import DatasetFiles
from anneal_pipeline.data.readers.choice import read_rows
from anneal_pipeline.data.rows import INVALID_ENCODING, BadRow, SourceRow
from anneal_pipeline.errors import DATASET_UNREADABLE, UserError

WRITTEN = {
    "utf-8": ("utf-8", "Größe 漢字"),
    "utf-16": ("utf-16", "Größe 漢字"),
    "latin-1": ("latin-1", "Größe ¿"),
    "cp1250": ("cp1250", "žluťoučký kůň"),
    "cp1251": ("cp1251", "съешь ещё"),
    "cp1252": ("cp1252", "Größe € “so”"),
    "shift_jis": ("cp932", "表示①ソ"),
    "gb18030": ("gb18030", "简体中文€"),
    "big5": ("cp950", "繁體中文功"),
    "euc-kr": ("cp949", "한국어 똠"),
}
"""What writes them, and a text that only they have; of the last four with bytes that look like a
backslash, and letters that Windows added."""


def text_of(kind: str, rows: list[dict[str, str]]) -> str:
    if kind == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if kind == "json":
        return json.dumps(rows, ensure_ascii=False, indent=1)
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]), delimiter=";")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def fields_of(path: Path, encoding: str) -> list[dict[str, Any]]:
    rows = read_rows(path, encoding=encoding)
    return [row.fields for row in rows if isinstance(row, SourceRow)]


@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize("kind", ["json", "jsonl", "csv"])
@pytest.mark.parametrize("encoding", WRITTEN)
def test_every_encoding_of_every_text_format(
    tmp_path: Path, encoding: str, kind: str, compression: str | None
) -> None:
    codec, text = WRITTEN[encoding]
    # Longer than a buffer, with characters of several bytes across its end.
    rows = [{"q": text, "a": text * 1000} for _ in range(99)]
    path = tmp_path / f"rows.{kind}"
    with pa.output_stream(str(path), compression=compression) as file:
        file.write(text_of(kind, rows).encode(codec))
    assert fields_of(path, encoding) == rows


def test_a_csv_as_a_western_spreadsheet_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes('Größe;Preis\r\n"5 m";"8,50 €"\r\n'.encode("cp1252"))
    assert fields_of(path, "cp1252") == [{"Größe": "5 m", "Preis": "8,50 €"}]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_needs_no_mark(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"q": "é"}\n'.encode(encoding))
    assert fields_of(path, "utf-16") == [{"q": "é"}]


def test_utf_8_may_have_its_mark(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"q": "é"}\n'.encode("utf-8-sig"))
    assert fields_of(path, "utf-8") == [{"q": "é"}]


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("cp1252", b"\x81"),
        ("shift_jis", b"\x81"),
        ("euc-kr", b"\xff\xff"),
        ("big5", b"\x80"),
        # As UTF-8 these are letters.
        ("euc-kr", b"\xc9\xa1"),
        ("big5", b"\xc8\xa1"),
    ],
)
def test_bytes_that_the_encoding_does_not_have_cost_their_row_alone(
    tmp_path: Path, encoding: str, data: bytes
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"q": "1"}\n{"q": "' + data + b'"}\n{"q": "3"}\n')
    first, bad, last = read_rows(path, encoding=encoding)
    assert [row.fields for row in (first, last) if isinstance(row, SourceRow)] == [
        {"q": "1"},
        {"q": "3"},
    ]
    assert isinstance(bad, BadRow)
    assert (bad.reason, bad.place.line) == (INVALID_ENCODING, 2)
    assert bad.detail == (
        f"is not valid {encoding}; correct dataset.encoding, or save the file as UTF-8"
    )


@pytest.mark.parametrize("encoding", sorted(set(WRITTEN) - {"utf-8", "utf-16"}))
def test_what_the_encoding_refuses_is_never_a_row(tmp_path: Path, encoding: str) -> None:
    """Whatever two bytes beyond ASCII it is."""
    codec, _ = WRITTEN[encoding]
    high = range(0x80, 0x100)
    lines = [b'{"q": "%c%c"}' % (first, second) for first in high for second in high]
    refused = [_is_refused(line, codec) for line in lines]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(lines))
    rows = list(read_rows(path, encoding=encoding))
    assert [isinstance(row, BadRow) for row in rows] == refused


def _is_refused(data: bytes, codec: str) -> bool:
    try:
        data.decode(codec)
    except UnicodeDecodeError:
        return True
    return False


def test_a_header_that_is_not_of_the_declared_encoding_is_named_with_it(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"gr\x81,b\n1,2\n")
    with pytest.raises(UserError, match=r"is not valid shift_jis; correct dataset\.encoding,"):
        list(read_rows(path, encoding="shift_jis"))


def test_a_header_may_have_the_sign_of_lost_letters_in_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("gr\ufffd,b\n1,2\n", encoding="utf-8")
    assert fields_of(path, "utf-8") == [{"gr\ufffd": "1", "b": "2"}]


@pytest.mark.parametrize("mark", ["utf-8-sig", "utf-16"])
def test_a_mark_of_another_encoding_is_refused(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"q": "é"}\n'.encode(mark))
    with pytest.raises(UserError, match=r"mark of utf-.* dataset\.encoding is cp1252"):
        list(read_rows(path, encoding="cp1252"))


def test_parquet_has_no_encoding_to_declare(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    parquet.write_table(pa.Table.from_pylist([{"q": "1"}]), path)
    with pytest.raises(UserError, match=r"rows\.parquet .* cp1252 has no effect") as caught:
        read_rows(path, encoding="cp1252")
    assert caught.value.reason == DATASET_UNREADABLE


@pytest.mark.parametrize("file_format", ["parquet", "datasets"])
def test_a_job_that_declares_it_for_such_a_format_is_refused(file_format: str) -> None:
    with pytest.raises(ConfigError, match=f"no effect on the format {file_format}"):
        DatasetConfig.parse({"uri": "x", "format": file_format, "encoding": "cp1252"})


def test_the_job_says_how_its_files_are_read(bench: Bench) -> None:
    rows = [{"prompt": f"Größe {n}?", "completion": f"{n} €"} for n in range(4)]
    path = bench.root / "rows.csv"
    path.write_bytes(text_of("csv", rows).encode("cp1252"))
    split = {"train": 1.0, "validation": 0.0}
    data = bench.prepare_files(
        DatasetFiles(train=(path,)), dataset={"encoding": "cp1252", "split": split}
    )
    assert len(data.train) == 4
    assert "Größe 3?" in (data.folder / "train" / "rows.jsonl").read_text()


def test_without_it_the_end_of_the_job_names_the_field(bench: Bench) -> None:
    path = bench.root / "rows.jsonl"
    rows = [bench.kit.chat(f"Größe {n}", "a") for n in range(4)]
    path.write_bytes(text_of("jsonl", rows).encode("latin-1"))
    with pytest.raises(UserError, match=r"name the encoding of the file in dataset\.encoding$"):
        bench.prepare_files(DatasetFiles(train=(path,)))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200), encoding=st.sampled_from(sorted(WRITTEN)))
def test_no_bytes_make_it_fail_otherwise(tmp_path: Path, data: bytes, encoding: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(data)
    try:
        rows = list(read_rows(path, encoding=encoding))
    except UserError:
        return
    assert all(isinstance(row, SourceRow | BadRow) for row in rows)
