"""Where training went back: the steps it gave up and took again.

MLflow deletes no points, so those of the steps given up stay beside the new ones; a tag of the run
says which they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from mlflow import MlflowClient

from anneal_jobs.tracking.parameters import write_tags


@dataclass(frozen=True, kw_only=True)
class Turn:
    step: int
    """The last step given up."""
    back_to: int
    """The step that training went on from."""
    at_ms: int
    """Points with a later timestamp are of the way taken since."""

    @property
    def tag(self) -> str:
        return f"anneal.replaced.step-{self.back_to + 1:06d}-{self.step:06d}"

    def write(self, client: MlflowClient, run_id: str) -> None:
        """Mark the steps on the run."""
        at = datetime.fromtimestamp(self.at_ms / 1000, UTC).isoformat(timespec="milliseconds")
        text = (
            f"Training went back to step {self.back_to}: of the points at steps {self.back_to + 1} "
            f"to {self.step}, those up to {at} ({self.at_ms} ms) are of steps given up, and only "
            "later ones count"
        )
        write_tags(client, run_id, {self.tag: text})

    def reached(self, client: MlflowClient, run_id: str, *, key: str) -> int:
        """The newest step of a metric on the way taken since."""
        history = client.get_metric_history(run_id, key)
        return max((p.step for p in history if p.timestamp > self.at_ms), default=self.back_to)
