"""What a person needs to see when the demo's job did not succeed."""

from collections.abc import Iterator

from job import JOB_NAME, read_job
from layout import JOB_NAMESPACE, OPERATOR_NAMESPACE
from target import Target

_TAIL = "--tail=40"
_JOB_LABEL = f"--selector=anneal.dev/job={JOB_NAME}"


def diagnosis(target: Target) -> Iterator[str]:
    """Yield conditions, events, and the ends of the pods' and the operator's logs."""
    where = f"--namespace={JOB_NAMESPACE}"
    yield "--- conditions"
    job = read_job(target)
    for condition in job.status.get("conditions", []) if job else []:
        yield "{type}={status} {reason}: {message}".format(**condition)
    yield "--- events"
    yield target.look("get", "events", where, "--sort-by=.lastTimestamp").rstrip()
    yield "--- pods"
    yield target.look("get", "pods", where, _JOB_LABEL, "--output=wide").rstrip()
    yield "--- trainer log"
    yield target.look("logs", where, _JOB_LABEL, "--all-containers", _TAIL).rstrip()
    yield "--- operator log"
    operator = ("--selector=app.kubernetes.io/name=anneal", _TAIL)
    yield target.look("logs", f"--namespace={OPERATOR_NAMESPACE}", *operator).rstrip()
