from pathlib import Path

import pytest

from anneal_jobs.errors import (
    InfrastructureError,
    StaleAttemptError,
    StorageUnreachableError,
)
from anneal_jobs.outcome import (
    find_outcome,
    outcome_of_error,
    read_outcome,
    write_outcome,
    write_termination_log,
)
from anneal_operator.api.outcome import Outcome, OutcomeClass
from anneal_pipeline.errors import (
    CheckpointError,
    RankFailedError,
    StopRequestedError,
    TrainingFailedError,
    UserError,
)


@pytest.mark.parametrize(
    ("error", "want_class", "want_reason", "want_code"),
    [
        (UserError("DatasetEmpty", "There are no rows."), "User", "DatasetEmpty", 65),
        (TrainingFailedError("NonFiniteLoss", "Loss is NaN."), "User", "NonFiniteLoss", 65),
        (StorageUnreachableError("No answer."), "Infrastructure", "StorageUnreachable", 203),
        (StopRequestedError(), "Interrupted", "Interrupted", 75),
        (StaleAttemptError(), "Infrastructure", "StaleAttempt", 203),
        (InfrastructureError("TrackingFailed", "No."), "Infrastructure", "TrackingFailed", 203),
        (CheckpointError("Damaged."), "Infrastructure", "Checkpoint", 203),
        (RankFailedError("Rank 1 failed."), "Infrastructure", "RankFailed", 203),
        (ZeroDivisionError("division"), "Infrastructure", "TrainerCrashed", 203),
    ],
)
def test_an_error_says_who_has_to_act(
    error: Exception, want_class: str, want_reason: str, want_code: int
) -> None:
    outcome = outcome_of_error(error, step=3, checkpoint="step-000002-a01-1f2e3d4c")
    assert (outcome.outcome_class, outcome.reason) == (want_class, want_reason)
    assert outcome.outcome_class.exit_code == want_code
    assert (outcome.step, outcome.checkpoint) == (3, "step-000002-a01-1f2e3d4c")


def test_a_message_is_one_line_of_bounded_length() -> None:
    outcome = outcome_of_error(ValueError("first\n  second " + "x" * 5000))
    assert outcome.message.startswith("The trainer crashed: ValueError: first second x")
    assert "\n" not in outcome.message
    assert len(outcome.message) == 1024


def test_an_outcome_survives_its_file(tmp_path: Path) -> None:
    outcome = outcome_of_error(UserError("DatasetEmpty", "There are no rows."))
    write_outcome(tmp_path / "rank-0.json", outcome)
    assert read_outcome(tmp_path / "rank-0.json") == outcome
    assert read_outcome(tmp_path / "rank-1.json") is None
    (tmp_path / "rank-2.json").write_text("{")
    assert read_outcome(tmp_path / "rank-2.json") is None


def test_the_termination_log_keeps_within_its_limit(tmp_path: Path) -> None:
    outcome = Outcome(
        outcome_class=OutcomeClass.DONE,
        reason="Trained",
        message="m" * 1024,
        metrics={f"metric{'x' * 150}{i}": 1.0 for i in range(30)},
    )
    path = tmp_path / "termination-log"
    path.write_text("")
    write_termination_log(path, outcome)
    assert len(path.read_bytes()) <= 4096
    assert Outcome.model_validate_json(path.read_text()).message == outcome.message


def test_a_rank_that_failed_outranks_the_first_that_did_not(tmp_path: Path) -> None:
    done = Outcome(outcome_class=OutcomeClass.DONE, reason="Trained", message="Done.")
    lost = outcome_of_error(StorageUnreachableError("No answer."))
    wrong = outcome_of_error(UserError("DatasetEmpty", "There are no rows."))
    assert find_outcome(tmp_path) is None
    write_outcome(tmp_path / "rank-0.json", done)
    assert find_outcome(tmp_path) == done
    write_outcome(tmp_path / "rank-1.json", lost)
    assert find_outcome(tmp_path) == lost
    write_outcome(tmp_path / "rank-2.json", wrong)
    assert find_outcome(tmp_path) == wrong


@pytest.mark.parametrize(
    "cause", [StorageUnreachableError("No answer."), StopRequestedError(), UserError("X", "Y.")]
)
def test_the_rank_that_says_what_happened_outranks_those_it_took_along(
    tmp_path: Path, cause: Exception
) -> None:
    taken_along = outcome_of_error(RankFailedError("Rank 1 of 2 failed: no answer"))
    write_outcome(tmp_path / "rank-0.json", taken_along)
    assert find_outcome(tmp_path) == taken_along
    write_outcome(tmp_path / "rank-1.json", outcome_of_error(cause))
    assert find_outcome(tmp_path) == outcome_of_error(cause)
