"""Every reason a trainer can give is documented for the people who read it in a condition."""

from anneal_jobs import errors as jobs
from anneal_operator.api.trainer_reasons import TRAINER_REASON_DOCS
from anneal_pipeline import errors as pipeline


def test_every_reason_that_can_be_raised_is_documented_and_no_other() -> None:
    raised = {*pipeline.USER_REASONS, *jobs.USER_REASONS, *jobs.INFRASTRUCTURE_REASONS}
    assert set(TRAINER_REASON_DOCS) == raised
