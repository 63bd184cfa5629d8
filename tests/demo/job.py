"""The demo's FineTuneJob: applied as the example's file has it, and read as it goes."""

import json
import queue
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from failure import DemoError, JobFailedError
from layout import JOB_FILE, JOB_NAMESPACE
from target import Object, Target

JOB_NAME = "python-help"
_KIND = "finetunejobs.anneal.dev"
_WHERE = f"--namespace={JOB_NAMESPACE}"
_FINAL_PHASES = ("Succeeded", "Failed", "Rejected")

SILENT_SECONDS_MAX = 15 * 60.0
"""The demo gives up when nothing at all changes for so long; the job itself goes on."""
_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Job:
    """One reading of the resource."""

    data: Object

    @property
    def uid(self) -> str:
        return str(self.data["metadata"]["uid"])

    @property
    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.data.get("status", {})
        return status

    @property
    def phase(self) -> str:
        return str(self.status.get("phase") or "Pending")

    @property
    def is_over(self) -> bool:
        return self.phase in _FINAL_PHASES

    @property
    def progress(self) -> dict[str, Any]:
        return self.status.get("progress") or {}

    @property
    def metrics(self) -> dict[str, float]:
        return self.status.get("metrics") or {}

    @property
    def mlflow(self) -> dict[str, Any]:
        return self.status.get("mlflow") or {}

    @property
    def output_uri(self) -> str:
        return str(self.status.get("outputUri") or self.status.get("outputURI") or "")

    @property
    def waits_for(self) -> str:
        """The sentence of the condition that says why nothing runs; empty when all is well."""
        if self.phase == "Succeeded":
            return ""
        by_type = {c["type"]: c for c in self.status.get("conditions", [])}
        if by_type.get("Running", {}).get("status") == "True":
            return ""
        for kind, truth in (
            ("Failed", "True"),
            ("Accepted", "False"),
            ("Queued", "True"),
            ("Provisioned", "False"),
            ("Running", "False"),
        ):
            found = by_type.get(kind)
            if found is not None and found["status"] == truth:
                return str(found["message"])
        return ""


def read_job(target: Target) -> Job | None:
    """Return the job as it is now, None when there is none."""
    found = target.get(_KIND, JOB_NAME, _WHERE)
    return None if found is None else Job(found)


def apply_job(target: Target) -> str:
    """Apply the example's file, unless an earlier demo's job still runs; say what was done.

    A finished FineTuneJob is never run again, so the resource of an earlier run is deleted first.
    Its MLflow run, its files and its model version stay: the new run registers the next version.
    """
    earlier = read_job(target)
    if earlier is not None and not earlier.is_over:
        return f"finetunejob {JOB_NAME} of an earlier run is {earlier.phase}: following that one"
    if earlier is not None:
        target.kubectl("delete", _KIND, JOB_NAME, _WHERE, "--wait", "--timeout=3m")
    said = target.kubectl("apply", _WHERE, f"--filename={JOB_FILE}").strip()
    if earlier is None:
        return said
    return f"{said} (the resource of the {earlier.phase.lower()} run was deleted; its model stays)"


def follow(target: Target) -> Iterator[Job]:
    """Yield the job at each change until it is over; raise when it vanishes or nothing happens."""
    last_change = time.monotonic()
    job = _present(read_job(target))
    yield job
    while not job.is_over:
        for changed in _watch(target):
            if changed is None:
                if time.monotonic() - last_change > SILENT_SECONDS_MAX:
                    raise JobFailedError(
                        f"finetunejob {JOB_NAME} did not change for {SILENT_SECONDS_MAX / 60:.0f} "
                        f"minutes; it is {job.phase} and goes on without this demo"
                    )
                yield job
                continue
            last_change, job = time.monotonic(), changed
            yield job
            if job.is_over:
                return
        # A watch ends by itself after some minutes, or with the API server's connection.
        job = _present(read_job(target))
        yield job


def _watch(target: Target) -> Iterator[Job | None]:
    """Yield the job at each event, and None after each second without one."""
    words = [*target.kubectl_words, "get", _KIND, JOB_NAME, _WHERE]
    process = subprocess.Popen(
        [*words, "--watch", "--output-watch-events", "--output=json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    events: queue.SimpleQueue[Object | None] = queue.SimpleQueue()
    threading.Thread(target=_read_events, args=(process, events), daemon=True).start()
    try:
        while True:
            try:
                event = events.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                yield None
                continue
            # ERROR: the API server ends the watch, for example after a restart.
            if event is None or event["type"] == "ERROR":
                return
            if event["type"] == "DELETED":
                raise JobFailedError(f"finetunejob {JOB_NAME} was deleted while the demo ran")
            yield Job(event["object"])
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)


def _read_events(
    process: "subprocess.Popen[str]", events: "queue.SimpleQueue[Object | None]"
) -> None:
    """Put each event (kubectl writes one a line) into the queue, and None at the end."""
    assert process.stdout is not None
    for line in process.stdout:
        events.put(json.loads(line))
    events.put(None)


def _present(job: Job | None) -> Job:
    if job is None:
        raise DemoError(f"finetunejob {JOB_NAMESPACE}/{JOB_NAME} is gone: someone deleted it")
    return job
