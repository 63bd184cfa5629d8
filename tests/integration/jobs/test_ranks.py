"""`compute.ranksPerWorker: 2` as the pod runs it: two Ray Train workers in one trainer."""

import os
import re
import signal
from pathlib import Path

from .tiny import write_rows
from .trial import Trial

NUM_STEPS = 300


def test_two_ranks_stop_and_fail_and_finish_as_one(trial: Trial, tmp_path: Path) -> None:
    dataset = trial.upload(write_rows(tmp_path / "rows.jsonl"))
    trial.write_config(dataset=dataset, max_steps=NUM_STEPS, num_ranks=2)

    stopped_at = check_planned_stop(trial)
    check_lost_rank(trial, after=stopped_at)

    code, done = trial.finish(trial.start(attempt=3))
    assert (code, done.outcome_class) == (0, "Done"), trial.console(3)
    assert done.step == NUM_STEPS
    assert f"Resuming from step {stopped_at} " in trial.log(3, rank=0)
    check_one_of_everything(trial)


def check_planned_stop(trial: Trial) -> int:
    """SIGTERM: both ranks stop at the same step, behind one checkpoint."""
    process = trial.start(attempt=1)
    trial.wait_for_log("step 3/", process, attempt=1)
    process.send_signal(signal.SIGTERM)
    code, outcome = trial.finish(process)
    assert (code, outcome.outcome_class) == (75, "Interrupted"), trial.console(1)
    assert outcome.step is not None
    assert 3 <= outcome.step < NUM_STEPS
    assert outcome.checkpoint == f"step-{outcome.step:06d}-a01-1f2e3d4c"
    for rank in (0, 1):
        assert f"rank {rank} of 2 on cpu" in trial.log(1, rank=rank)
        assert "Traceback" not in trial.log(1, rank=rank)
    return outcome.step


def check_lost_rank(trial: Trial, *, after: int) -> None:
    """A rank that the kernel kills ends the attempt, and not after a timeout of hours."""
    process = trial.start(attempt=2)
    trial.wait_for_log(f"step {after + 1}/", process, attempt=2)
    found = re.search(r"rank 1 of 2 on cpu, process (\d+)", trial.log(2, rank=1))
    assert found is not None
    os.kill(int(found[1]), signal.SIGKILL)
    code, outcome = trial.finish(process)
    assert (code, outcome.outcome_class) == (203, "Infrastructure"), trial.console(2)
    assert outcome.reason in ("RankFailed", "TrainerCrashed")


def check_one_of_everything(trial: Trial) -> None:
    history = trial.client.get_metric_history(trial.run_id, "train/loss")
    assert [point.step for point in history] == list(range(1, NUM_STEPS + 1))
    experiment = trial.client.get_run(trial.run_id).info.experiment_id
    assert len(trial.client.search_runs([experiment])) == 1
    assert len(trial.client.search_model_versions(f"name = '{trial.name}'")) == 1
    stored = trial.files.list_names()
    assert len([name for name in stored if name.startswith("artifacts/adapter/")]) > 1
    logs = {"rank-0.log", "rank-1.log", "events.jsonl"}
    assert {f"logs/attempt-03/{name}" for name in logs} <= set(stored)
