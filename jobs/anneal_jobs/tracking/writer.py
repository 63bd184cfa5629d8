"""Writing to one MLflow run from a thread of its own, so that MLflow never stops training.

Points go out in order and in batches; during an outage they wait in a bounded spool. A resumed
attempt first asks which step each metric has reached and leaves out what is there already: no gap,
no duplicate. Where training went back, only the points since then count as reached (`turns`).
Whatever else belongs to the run (parameters, tags, artefacts) goes the same way.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from anneal_jobs.tracking.connection import UnreachableError, tell_outage_apart
from anneal_jobs.tracking.points import Point, Spool, points_of
from anneal_jobs.tracking.turns import Turn

log = logging.getLogger(__name__)

_BATCH_POINTS = 1000  # MLflow's limit per request.
_LINGER_SECONDS = 2.0
_BACKOFF_MAX_SECONDS = 30.0
_CLOSE_SECONDS = 5.0
_STATE_KEY = "pendingMetrics"
_TURNS_KEY = "turns"


@dataclass(frozen=True, kw_only=True)
class Action:
    """Something to write that is no metric point."""

    name: str
    """For the log, e.g. 'parameters'."""
    write: Callable[[MlflowClient, str], None]
    """Called with client and run id; may be called again after an outage."""


class RunWriter:
    def __init__(
        self,
        client: MlflowClient,
        run_id: str,
        *,
        spool: Spool | None = None,
        linger_seconds: float = _LINGER_SECONDS,
    ) -> None:
        self.client = client
        self.run_id = run_id
        self._spool = Spool() if spool is None else spool
        self._linger_seconds = linger_seconds
        self._actions: deque[Action] = deque()
        self._last_steps: dict[str, int] | None = None
        self._turns: list[Turn] = []
        self._reached: dict[tuple[str, Turn], int] = {}
        """The newest step of a metric since a turn, as earlier attempts left it."""
        self._flushing = threading.Event()
        self._closing = threading.Event()
        self._idle = threading.Condition()
        self._is_unreachable = False
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, values: Mapping[str, float], *, step: int, is_always_sent: bool = False) -> None:
        """Queue metric values of a global step, stamped with the present time."""
        now_ms = self._now_ms()
        self._spool.add(
            points_of(values, step=step, timestamp_ms=now_ms, is_always_sent=is_always_sent)
        )

    def submit(self, action: Action) -> None:
        self._actions.append(action)

    def go_back(self, *, step: int, back_to: int) -> None:
        """Training gives up the steps after `back_to`, up to `step`, and takes them anew."""
        if step > back_to:
            turn = Turn(step=step, back_to=back_to, at_ms=self._now_ms())
            self._turns.append(turn)
            self.submit(Action(name=f"tag {turn.tag}", write=turn.write))

    def save_state(self) -> Mapping[str, Any]:
        """What a checkpoint has to keep: the points that have not arrived, and the turns."""
        return {
            _STATE_KEY: self._spool.to_state(),
            _TURNS_KEY: [asdict(turn) for turn in self._turns],
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._spool.replay(state.get(_STATE_KEY, []))
        self._turns = [Turn(**turn) for turn in state.get(_TURNS_KEY, [])]
        for turn in self._turns:  # an attempt that was killed may not have got to it
            self.submit(Action(name=f"tag {turn.tag}", write=turn.write))

    def _now_ms(self) -> int:
        """The time, but later than the last turn whatever this node's clock says."""
        now_ms = time.time_ns() // 1_000_000
        return max([now_ms, *(turn.at_ms + 1 for turn in self._turns)])

    def flush(self, *, within_seconds: float) -> bool:
        """Wait until everything queued has arrived; False when the time was not enough."""
        self._flushing.set()
        with self._idle:
            done = self._idle.wait_for(self._is_empty, timeout=within_seconds)
        self._flushing.clear()
        return done

    def close(self) -> None:
        """Give what is queued a moment and end, because a grace period may be running out."""
        self.flush(within_seconds=_CLOSE_SECONDS)
        self._closing.set()
        self._flushing.set()
        self._thread.join(timeout=_CLOSE_SECONDS)

    def _is_empty(self) -> bool:
        return not self._actions and len(self._spool) == 0

    def _run(self) -> None:
        backoff = 1.0
        while not self._closing.is_set():
            try:
                with tell_outage_apart():
                    self._write_some()
                backoff = 1.0
                self._note_reachable()
            except UnreachableError as error:
                self._note_outage(error)
                self._closing.wait(backoff)
                backoff = min(backoff * 2, _BACKOFF_MAX_SECONDS)
                continue
            with self._idle:
                self._idle.notify_all()
            if len(self._spool) < _BATCH_POINTS:
                self._flushing.wait(self._linger_seconds)
                self._closing.wait(0.05 if self._flushing.is_set() else 0)

    def _write_some(self) -> None:
        if self._last_steps is None:
            self._last_steps = last_steps(self.client, self.run_id)
        while self._actions:
            self._perform(self._actions[0])
            self._actions.popleft()
        batch = self._spool.oldest(_BATCH_POINTS)
        fresh = [point for point in batch if self._is_wanted(point)]
        if fresh:
            self.client.log_batch(self.run_id, metrics=[_metric(p) for p in fresh])
        self._spool.acknowledge(batch)

    def _perform(self, action: Action) -> None:
        try:
            with tell_outage_apart():
                action.write(self.client, self.run_id)
        except (MlflowException, OSError) as error:
            # A refusal of one item must not keep the others from being written.
            log.warning("MLflow refused the %s of run %s: %s", action.name, self.run_id, error)

    def _is_wanted(self, point: Point) -> bool:
        return point.is_always_sent or point.step > self._reached_by_others(point)

    def _reached_by_others(self, point: Point) -> int:
        """The newest step of the metric when this attempt came to the point's way."""
        before = [turn for turn in self._turns if turn.at_ms < point.timestamp_ms]
        if not before:
            return (self._last_steps or {}).get(point.key, -1)
        at = point.key, before[-1]
        if at not in self._reached:
            self._reached[at] = before[-1].reached(self.client, self.run_id, key=point.key)
        return self._reached[at]

    def _note_outage(self, error: UnreachableError) -> None:
        if not self._is_unreachable:
            log.warning("MLflow does not answer, points are kept for later: %s", str(error)[:300])
        self._is_unreachable = True

    def _note_reachable(self) -> None:
        if self._is_unreachable:
            log.info("MLflow answers again")
        self._is_unreachable = False


def last_steps(client: MlflowClient, run_id: str) -> dict[str, int]:
    """The newest step of every metric of the run."""
    return {m.key: m.step for m in client.get_run(run_id).data.to_proto().metrics}


def _metric(point: Point) -> Metric:
    return Metric(key=point.key, value=point.value, timestamp=point.timestamp_ms, step=point.step)
