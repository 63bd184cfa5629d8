"""The logs of an attempt among the artefacts of its MLflow run, however the attempt ended."""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from anneal_jobs.logs import is_kept_whole, shown
from anneal_jobs.tracking.connection import UnreachableError, tell_outage_apart

log = logging.getLogger(__name__)


def send_logs(
    client: MlflowClient,
    run_id: str,
    logs: Sequence[Path],
    *,
    folder: str,
    within_seconds: float,
) -> bool:
    """Upload logs below `folder`; False, and a warning, where MLflow does not take them.

    Those that are kept whole go last and from the disk. Gives up after `within_seconds`: the
    process may have little time left.
    """
    sent = threading.Event()

    def send() -> None:
        try:
            with tempfile.TemporaryDirectory() as scratch, tell_outage_apart():
                for path in (path for path in logs if not is_kept_whole(path)):
                    (Path(scratch) / path.name).write_bytes(shown(path))
                client.log_artifacts(run_id, scratch, folder)
                for path in filter(is_kept_whole, logs):
                    client.log_artifact(run_id, str(path), folder)
            sent.set()
        except (UnreachableError, MlflowException, OSError) as error:
            log.warning("MLflow did not take the logs: %s", str(error)[:300])

    thread = threading.Thread(target=send, name="run-logs", daemon=True)
    thread.start()
    thread.join(timeout=within_seconds)
    if thread.is_alive():
        log.warning("MLflow did not take the logs within %.0f s", within_seconds)
    return sent.is_set()
