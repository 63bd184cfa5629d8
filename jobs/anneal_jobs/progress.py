"""Telling the operator how far the run is: Kubeflow Trainer's status protocol with our own object.

Reports go out from a thread of their own, at most one per `MIN_INTERVAL_SECONDS` and only when
something has changed, so that silence means no work was done. A server that does not answer never
stops training; one that answers 409 says that a newer attempt runs, and then this one has to stop.
"""

from __future__ import annotations

import logging
import os
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from anneal_jobs.run_state import RunState
from anneal_operator.api import names
from anneal_operator.api.outcome import Outcome
from anneal_operator.api.progress import (
    MIN_INTERVAL_SECONDS,
    AnnealStatus,
    ProgressReport,
    TrainerStatus,
)

log = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 10.0
_LAST_TIMEOUT_SECONDS = 2.0
"""For the last report: the outcome, which has to arrive, waits for its end."""
_RETRY_SECONDS = 2.0
_STALE = 409


@dataclass(frozen=True, kw_only=True)
class ProgressServer:
    """Where reports go. Token and CA are paths, read again for each request: both rotate."""

    url: str
    token_path: Path
    ca_path: Path | None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> ProgressServer | None:
        """The server named by the environment; None where nobody listens."""
        url = environment.get(names.ENV_PROGRESS_URL)
        if not url:
            return None
        ca_path = environment.get(names.ENV_PROGRESS_CA)
        return cls(
            url=url,
            token_path=Path(environment.get(names.ENV_PROGRESS_TOKEN, names.PROGRESS_TOKEN_PATH)),
            ca_path=Path(ca_path) if ca_path else None,
        )

    def post(self, body: bytes, *, timeout_seconds: float) -> int:
        """Send one report and return the HTTP status; OSError when nobody answers."""
        # The address comes from the operator, never from a user.
        request = urllib.request.Request(self.url, data=body, method="POST")  # noqa: S310
        request.add_header("Content-Type", "application/json")
        request.add_header(
            "Authorization", f"Bearer {self.token_path.read_text(encoding='utf-8').strip()}"
        )
        context = None
        if self.url.startswith("https://"):
            context = ssl.create_default_context(cafile=self.ca_path)
        try:
            with urllib.request.urlopen(  # noqa: S310
                request, timeout=timeout_seconds, context=context
            ) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code


class Post(Protocol):
    """Sends one report: the HTTP status it was answered with, OSError where nobody answers."""

    def __call__(self, body: bytes, /, *, timeout_seconds: float) -> int: ...


class ProgressReporter:
    """Sends what `state` holds whenever it has changed."""

    def __init__(
        self,
        state: RunState,
        *,
        post: Post,
        attempt: int,
        interval_seconds: float = MIN_INTERVAL_SECONDS,
    ) -> None:
        self._state = state
        self._post = post
        self._attempt = attempt
        self._interval_seconds = interval_seconds
        self._closing = threading.Event()
        self._sent_version = -1
        self._is_failing = False
        self._is_given_up = False
        self.is_stale = False
        """True once the server has said that a newer attempt runs."""
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Send what is new once more, and end: the outcome, which comes next, has no events.

        A report that is on its way has as long as the last one; then both are given up.
        """
        self._closing.set()
        self._thread.join(timeout=2 * _LAST_TIMEOUT_SECONDS)
        self._is_given_up = True

    def send_if_changed(self, *, timeout_seconds: float = _TIMEOUT_SECONDS) -> None:
        """Send one report if there is news; failures are logged once and tried again later."""
        version, status = self._state.snapshot(attempt=self._attempt)
        if version == self._sent_version or self.is_stale:
            return
        try:
            code = self._post(body_of(status, self._state), timeout_seconds=timeout_seconds)
        except OSError as error:
            self._note_failure(f"progress server does not answer: {error}")
            return
        if code == _STALE:
            self.is_stale = True
            log.warning("a newer attempt is running; this one stops")
        elif code >= 400:
            self._note_failure(f"progress server answered {code}")
            return
        self._is_failing = False
        self._sent_version = version
        self._state.forget_events(status.events)

    def _note_failure(self, message: str) -> None:
        if not self._is_failing:
            log.warning("%s; training goes on", message)
        self._is_failing = True

    def _run(self) -> None:
        while not self._closing.wait(self._interval_seconds):
            self.send_if_changed()
        if not self._is_given_up:
            self.send_if_changed(timeout_seconds=_LAST_TIMEOUT_SECONDS)


def body_of(status: AnnealStatus, state: RunState) -> bytes:
    """One POST body: the Kubeflow fields and beside them the `anneal` object."""
    report = ProgressReport(
        trainer_status=TrainerStatus(
            progress_percentage=state.percentage,
            estimated_remaining_seconds=state.eta_seconds,
            metrics=state.metrics,
            last_updated_time=datetime.now(UTC),
        ),
        anneal=status,
    )
    return report.model_dump_json(exclude_none=True).encode()


def send_outcome(
    outcome: Outcome,
    *,
    post: Post,
    attempt: int,
    within_seconds: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Send the attempt's last report, trying again until it is accepted or the time is up."""
    state = RunState()
    state.set_outcome(outcome)
    body = body_of(state.snapshot(attempt=attempt)[1], state)
    until = clock() + within_seconds
    while True:
        try:
            code = post(body, timeout_seconds=_TIMEOUT_SECONDS)
        except OSError as error:
            log.warning("outcome not delivered yet: %s", error)
        else:
            if code < 400:
                return True
            if code == _STALE:
                return False
            log.warning("outcome not delivered yet: progress server answered %d", code)
        if clock() + _RETRY_SECONDS >= until:
            return False
        sleep(_RETRY_SECONDS)
