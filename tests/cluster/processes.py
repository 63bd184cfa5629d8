"""Starts programs that outlive us, and stops exactly those again.

A process is known by the record it writes about itself before it becomes the program: its
/proc stat line (pid and start time) and the boot id. A process is only ever signalled when all
three still match, so a reused pid is never hit, and there is no moment at which a started process
is without a record.
"""

import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from errors import ClusterError

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# $0 is the record, "$@" the program; `exec` keeps both pid and start time.
_LAUNCHER = (
    'cat "/proc/$$/stat" /proc/sys/kernel/random/boot_id > "$0.new" && '
    'mv "$0.new" "$0" && exec "$@"'
)


@dataclass(frozen=True)
class Identity:
    """What tells one process from every other since the machine was built."""

    pid: int
    start_ticks: int
    boot_id: str


def parse_stat(line: str) -> tuple[int, str, int]:
    """Pid, state letter and start time (clock ticks since boot) of a /proc/PID/stat line.

    The command's name stands in parentheses and may itself hold spaces and parentheses.
    """
    head, _, tail = line.rpartition(")")
    fields = tail.split()
    return int(head.split("(", 1)[0]), fields[0], int(fields[19])


def read_record(record: Path) -> Identity | None:
    """The process that a record tells of; None when there is no whole record."""
    try:
        stat, boot_id = record.read_text().splitlines()
        pid, _, start_ticks = parse_stat(stat)
    except (FileNotFoundError, ValueError):
        return None
    return Identity(pid=pid, start_ticks=start_ticks, boot_id=boot_id)


def is_alive(identity: Identity) -> bool:
    """Whether that very process still runs (a zombie does not)."""
    if _BOOT_ID.read_text().strip() != identity.boot_id:
        return False
    try:
        line = Path(f"/proc/{identity.pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    _, state, start_ticks = parse_stat(line)
    return start_ticks == identity.start_ticks and state not in "ZX"


def running(record: Path) -> Identity | None:
    """The live process of a record, if there is one."""
    identity = read_record(record)
    return identity if identity and is_alive(identity) else None


def start(
    argv: Sequence[str | Path],
    *,
    record: Path,
    log: Path,
    environment: Mapping[str, str],
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, so that Ctrl-C here does not reach it.

    Returns once its record is written. Raises ClusterError when it never gets that far.
    """
    record.parent.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)
    with log.open("ab") as output:
        child = subprocess.Popen(
            ["/bin/sh", "-c", _LAUNCHER, str(record), *[str(word) for word in argv]],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    while read_record(record) is None:
        if child.poll() is not None:
            raise ClusterError(f"{argv[0]} could not be started: see {log}")
        time.sleep(0.01)
    return child


def stop(record: Path, *, grace_seconds: float) -> None:
    """End the process of a record: SIGTERM, after the grace SIGKILL; then drop the record."""
    identity = running(record)
    if identity is not None:
        _end(identity, grace_seconds=grace_seconds)
    record.unlink(missing_ok=True)


def kill(pid: int) -> None:
    """Kill a process that the caller has identified by other means, if it still exists."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _end(identity: Identity, *, grace_seconds: float) -> None:
    try:
        handle = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return
    try:
        # The handle names one process for good: from here a reused pid cannot be hit.
        if not is_alive(identity):
            return
        for number, seconds in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, 10.0)):
            signal.pidfd_send_signal(handle, number)
            if select.select([handle], [], [], seconds)[0]:
                return
    except ProcessLookupError:
        return
    finally:
        os.close(handle)
