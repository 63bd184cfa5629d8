"""Ray on this machine, and one TorchTrainer run on it.

Ray is started for this attempt alone: no dashboard, a small object store (nothing but metadata goes
through it), everything below /tmp.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch

from anneal_jobs.attempt import Attempt, settings_of
from anneal_jobs.errors import RAY_NOT_STARTED, InfrastructureError
from anneal_jobs.follow import LogFollower
from anneal_jobs.logs import tail_of
from anneal_jobs.quiet import quiet_libraries

log = logging.getLogger(__name__)

_OBJECT_STORE_BYTES = 100 << 20  # Ray refuses less than 75 MiB.
_POLL_SECONDS = 0.2
_MEETING_SECONDS = 24 * 3600
"""The ranks wait for the first one's downloads and data, however long these take. A rank that dies
ends the meeting at once; one that hangs brings no progress, which deadlines.stallSeconds is for."""
_START_TRIES = 3
_TEMP_FOLDER = "/tmp"  # noqa: S108  # sockets live there, and their paths are short
_TEMP_PREFIX = "ray-"
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Its monitor kills the trainer at 95 % of the pod's memory; the kernel and the operator know
    # better (reason OutOfMemory).
    "RAY_memory_monitor_refresh_ms": "0",
    # A pod has one node and one job: what Ray starts for later nodes and jobs would only make
    # short jobs longer (each Python process costs about 2 CPU-seconds), and workers with a lower
    # priority than their own driver would train slower beside other pods' processes.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_worker_niceness": "0",
    # Threads that spin while they wait take the processors from the pods beside them, and then
    # from each other: two trainers on two cores were 50 times slower than one after the other.
    "OMP_WAIT_POLICY": "PASSIVE",
    # All ranks are in this pod, whose host name need not lead anywhere.
    "GLOO_SOCKET_IFNAME": "lo",
}


@dataclass(frozen=True, kw_only=True)
class Resources:
    num_ranks: int
    num_cpus: int
    use_gpu: bool


def start_ray(resources: Resources) -> Path:
    """Start Ray and return its folder; replaces the SIGTERM handler of this process."""
    quiet_libraries()
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Ray would set one thread per rank; the same number in every attempt keeps resumes exact.
    threads = max(1, resources.num_cpus // resources.num_ranks)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    for is_last in [*[False] * (_START_TRIES - 1), True]:
        folder = tempfile.mkdtemp(prefix=f"{_TEMP_PREFIX}{os.getpid()}-", dir=_TEMP_FOLDER)
        try:
            _init(resources, folder)
        except Exception as error:
            # Ray gives its node 30 s to start, which a busy machine may miss, and raises a bare
            # Exception (ray/_private/node.py, raylet_start_wait_time_s).
            if is_last:
                raise InfrastructureError(RAY_NOT_STARTED, f"Ray did not start: {error}") from error
            log.warning("Ray did not start, trying again: %s", error)
            ray.shutdown()
        else:
            break
    return Path(folder)


def _init(resources: Resources, folder: str) -> None:
    ray.init(
        address="local",
        num_cpus=max(resources.num_cpus, resources.num_ranks),
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        _temp_dir=folder,
        logging_level=logging.WARNING,
        log_to_driver=False,
    )


def stop_ray() -> None:
    """End Ray's processes and remove its folder; harmless where it has not started."""
    ray.shutdown()
    for folder in Path(_TEMP_FOLDER).glob(f"{_TEMP_PREFIX}{os.getpid()}-*"):
        shutil.rmtree(folder, ignore_errors=True)


def keep_worker_output(ray_folder: Path, logs: Path) -> None:
    """Put beside our logs what the workers' processes printed, for the one that died silently."""
    for path in ray_folder.glob("session_latest/logs/worker-*.err"):
        if path.stat().st_size:
            (logs / f"ray-{path.stem[-20:]}.log").write_bytes(tail_of(path))


def train(
    attempt: Attempt, resources: Resources, *, is_given_up: Callable[[], bool]
) -> Exception | None:
    """Run all ranks to their end; returns what Ray says went wrong, None if nothing.

    `fit()` runs on a thread so that this one stays free for signals and the grace period.
    """
    trainer = ray.train.torch.TorchTrainer(
        _train_loop,
        train_loop_config=settings_of(attempt),
        torch_config=ray.train.torch.TorchConfig(timeout_s=_MEETING_SECONDS),
        scaling_config=ray.train.ScalingConfig(
            num_workers=resources.num_ranks,
            use_gpu=resources.use_gpu,
            resources_per_worker={"CPU": 1, **({"GPU": 1} if resources.use_gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name="anneal",
            storage_path=str(_storage_folder(attempt.folders.scratch)),
            failure_config=ray.train.FailureConfig(max_failures=0),
        ),
    )
    errors: list[Exception] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:  # whatever Ray raises is judged beside the outcome files
            errors.append(error)

    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    follower = LogFollower(attempt.folders.logs / "rank-0.log")
    follower.start()
    thread.start()
    while thread.is_alive() and not is_given_up():
        thread.join(timeout=_POLL_SECONDS)
    follower.close()
    return errors[0] if errors else None


def _train_loop(settings: dict[str, Any]) -> None:
    # Only the workers need torch, transformers and MLflow; the driver starts sooner without.
    from anneal_jobs.worker import train_worker

    train_worker(settings)


def _storage_folder(scratch: Path) -> Path:
    folder = scratch / "ray"
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()
