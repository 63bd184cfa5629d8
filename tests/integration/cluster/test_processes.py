"""Real processes: started with a record, stopped by it, and deaf to our own Ctrl-C."""

import os
import time
from pathlib import Path

import pytest
from errors import ClusterError
from processes import running, start, stop

DEAF = "trap '' TERM; echo deaf; while :; do sleep 0.1; done"


def wait_for_text(log: Path, text: str) -> None:
    end = time.monotonic() + 10.0
    while text not in log.read_text():
        assert time.monotonic() < end, f"{text!r} did not appear in {log}"
        time.sleep(0.01)


def test_a_process_is_found_by_its_record_and_ends_by_it(tmp_path: Path) -> None:
    record = tmp_path / "record"
    with start(["sleep", "600"], record=record, log=tmp_path / "log", environment={}) as child:
        identity = running(record)
        assert identity is not None
        assert identity.pid == child.pid
        assert os.getsid(child.pid) == child.pid
        stop(record, grace_seconds=5.0)
    assert running(record) is None
    assert not record.exists()


def test_one_that_ignores_the_request_is_killed_after_the_grace(tmp_path: Path) -> None:
    record, log = tmp_path / "record", tmp_path / "log"
    with start(["sh", "-c", DEAF], record=record, log=log, environment={}) as child:
        wait_for_text(log, "deaf")
        stop(record, grace_seconds=0.2)
    assert child.returncode == -9


def test_what_it_prints_and_its_environment_go_where_they_should(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "log"
    arguments = ["sh", "-c", 'echo "$GREETING"']
    with start(
        arguments, record=tmp_path / "record", log=log, environment={"GREETING": "hello"}
    ) as child:
        assert child.wait(10.0) == 0
    assert log.read_text() == "hello\n"


def test_a_record_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    record = tmp_path / "record"
    (tmp_path / "record.new").mkdir()
    with pytest.raises(ClusterError, match="could not be started"):
        start(["true"], record=record, log=tmp_path / "log", environment={})
