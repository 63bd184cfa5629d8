"""A record names one process for good; a reused pid is not that process."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from processes import is_alive, parse_stat, read_record, running

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def stat_line(*, name: str, state: str = "S", start: int = 4711) -> str:
    fields = [state, *["0"] * 18, str(start), *["0"] * 30]
    return f"123 ({name}) {' '.join(fields)}"


def own_record(folder: Path) -> Path:
    record = folder / "record"
    record.write_text(Path("/proc/self/stat").read_text() + BOOT_ID.read_text())
    return record


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("etcd", id="a plain name"),
        pytest.param("tmux: server", id="a name with a space"),
        pytest.param(":) (S 1", id="a name that looks like the end of itself"),
    ],
)
def test_stat_is_read_whatever_the_program_calls_itself(name: str) -> None:
    assert parse_stat(stat_line(name=name)) == (123, "S", 4711)


def test_a_record_of_a_living_process_finds_it(tmp_path: Path) -> None:
    identity = running(own_record(tmp_path))
    assert identity is not None
    assert identity.pid == os.getpid()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"start_ticks": 1}, id="the pid was given to a later process"),
        pytest.param({"boot_id": "another"}, id="the machine was booted since"),
        pytest.param({"pid": 2**22 + 1}, id="there is no such pid"),
    ],
)
def test_another_process_is_never_taken_for_the_recorded_one(
    tmp_path: Path, change: dict[str, int | str]
) -> None:
    identity = read_record(own_record(tmp_path))
    assert identity is not None
    assert is_alive(identity)
    assert not is_alive(replace(identity, **change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="an empty file"),
        pytest.param("123 (etcd) S 1 2\n", id="half a record"),
        pytest.param("nonsense\nboot\n", id="no stat line"),
    ],
)
def test_a_record_that_is_not_whole_names_nobody(tmp_path: Path, text: str) -> None:
    record = tmp_path / "record"
    record.write_text(text)
    assert read_record(record) is None


def test_no_record_names_nobody(tmp_path: Path) -> None:
    assert read_record(tmp_path / "absent") is None
