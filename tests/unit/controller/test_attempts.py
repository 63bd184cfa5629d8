"""What the end of one attempt tells, and what of it the next one must not hear."""

from tests.unit.controller.conftest import after, ended_pod, outcome, report, running

from anneal_operator.api.status import CheckpointStatus
from anneal_operator.plan import plan

SAVED = "step-000021-a01-94a5f013"


def test_checkpoint_saved_on_the_way_out_is_the_one_to_go_on_from() -> None:
    told = outcome("Interrupted", step=21, checkpoint=SAVED)
    start = running()
    earlier = report(step=20, checkpoint="step-000020-a01-94a5f013", checkpointStep=20)
    ended = after(
        {"report": earlier}, {"report": None, "pods": (ended_pod(code=75, outcome=told),)},
        start=start,
    )  # fmt: skip
    decided = plan(ended)
    assert decided.status.checkpoint == CheckpointStatus(name=SAVED, step=21)


def test_a_trainer_that_went_back_is_believed() -> None:
    before = report(step=30, checkpoint="step-000030-a01-94a5f013", checkpointStep=30)
    gone_back = report(step=12, checkpoint="step-000010-a01-94a5f013", checkpointStep=10)
    decided = plan(after({"report": before}, {"report": gone_back}, start=running()))
    assert decided.status.checkpoint == CheckpointStatus(name="step-000010-a01-94a5f013", step=10)


def test_the_report_before_the_outcome_does_not_undo_it() -> None:
    told = outcome("Interrupted", step=21, checkpoint=SAVED)
    earlier = report(step=20, checkpoint="step-000020-a01-94a5f013", checkpointStep=20)
    over = {"report": earlier, "pods": (ended_pod(code=75, outcome=told),)}
    decided = plan(after(over, over, start=running()))
    assert decided.status.checkpoint == CheckpointStatus(name=SAVED, step=21)


def test_an_outcome_with_a_strange_checkpoint_name_changes_no_checkpoint() -> None:
    told = outcome("Interrupted", step=21, checkpoint="latest")
    decided = plan(after({"pods": (ended_pod(code=75, outcome=told),)}, start=running()))
    assert decided.status.checkpoint is None


def test_a_report_of_another_attempt_says_nothing_of_this_one() -> None:
    decided = plan(after({"report": report(attempt=2, step=32)}, start=running()))
    assert decided.status.attempts[0].last_step is None
