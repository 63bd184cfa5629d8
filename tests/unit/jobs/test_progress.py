import json
import ssl
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Event, Thread
from threading import enumerate as enumerate_threads

import pytest

from anneal_jobs import progress
from anneal_jobs.outcome import outcome_of_error
from anneal_jobs.progress import Post, ProgressReporter, ProgressServer, send_outcome
from anneal_jobs.run_state import RunState
from anneal_operator.api.progress import MIN_INTERVAL_SECONDS, ProgressReport
from anneal_pipeline.errors import UserError
from anneal_pipeline.observer import CheckpointReport, EvaluationReport, StepReport


def step_report(step: int, *, loss: float = 1.5) -> StepReport:
    return StepReport(
        step=step,
        total_steps=200,
        epoch=0.5,
        loss=loss,
        learning_rate=2e-4,
        grad_norm=1.0,
        num_tokens=100,
        num_trained_tokens=50,
        step_seconds=1.0,
        data_seconds=0.1,
        gradient_seconds=0.8,
        update_seconds=0.1,
        tokens_per_second=100.0,
        eta_seconds=61.4,
        memory_bytes=1,
    )


class Recorder:
    def __init__(self, *answers: int | OSError) -> None:
        self.bodies: list[bytes] = []
        self._answers = list(answers)

    def __call__(self, body: bytes, *, timeout_seconds: float) -> int:
        self.bodies.append(body)
        answer = self._answers.pop(0) if self._answers else 200
        if isinstance(answer, OSError):
            raise answer
        return answer


def reporter_of(state: RunState, post: Post) -> ProgressReporter:
    return ProgressReporter(state, post=post, attempt=2)


def test_a_report_carries_the_kubeflow_fields_and_ours() -> None:
    state, post = RunState(), Recorder()
    state.set_stage("train", done=50, total=200, unit="steps")
    state.set_step(step_report(50))
    state.add_evaluation(
        EvaluationReport(
            step=50,
            subject="base",
            split="validation",
            metrics={"responsePerplexity": 12.25},
            num_rows=3,
            num_tokens=9,
            seconds=1.0,
        )
    )
    state.set_checkpoint(
        CheckpointReport(
            name="step-000040-a02-1f2e3d4c",
            step=40,
            num_bytes=1,
            seconds=1.0,
            is_best=True,
            cause="interval",
        )
    )
    state.add_event("warning", "Few rows.")
    reporter_of(state, post).send_if_changed()
    report = ProgressReport.model_validate_json(post.bodies[0])
    assert report.trainer_status.progress_percentage == 25
    assert report.trainer_status.estimated_remaining_seconds == 61
    values = {metric.name: metric.value for metric in report.trainer_status.metrics}
    assert values["loss"] == "1.5"
    assert values["base.validation.responsePerplexity"] == "12.25"
    anneal = report.anneal
    assert (anneal.attempt, anneal.step, anneal.total_steps, anneal.loss) == (2, 50, 200, 1.5)
    assert (anneal.checkpoint, anneal.checkpoint_step) == ("step-000040-a02-1f2e3d4c", 40)
    assert [event.message for event in anneal.events] == ["Few rows."]


def test_nothing_is_sent_while_nothing_changes() -> None:
    state, post = RunState(), Recorder()
    reporter = reporter_of(state, post)
    state.set_step(step_report(1))
    reporter.send_if_changed()
    reporter.send_if_changed()
    assert len(post.bodies) == 1
    state.set_step(step_report(2))
    reporter.send_if_changed()
    assert len(post.bodies) == 2


def test_an_event_is_sent_until_it_has_arrived_and_then_no_more() -> None:
    state, post = RunState(), Recorder(OSError("refused"), 500, 200)
    reporter = reporter_of(state, post)
    state.add_event("warning", "Few rows.")
    for _ in range(3):
        reporter.send_if_changed()
    state.set_step(step_report(1))
    reporter.send_if_changed()
    sent = [json.loads(body)["anneal"].get("events", []) for body in post.bodies]
    assert [len(events) for events in sent] == [1, 1, 1, 0]


def test_recoveries_outlive_lesser_events_and_what_is_left_out_is_counted() -> None:
    state, post = RunState(), Recorder(500, 200, 200, 200)
    reporter = reporter_of(state, post)
    state.add_event("recovered", "Memory ran out.")
    state.add_event("early-stop", "No better for 3 evaluations.")
    for number in range(20):
        state.add_event("warning", f"Warning {number}.")
    for _ in range(2):
        reporter.send_if_changed()
    first, second = (ProgressReport.model_validate_json(body).anneal.events for body in post.bodies)
    assert first == second, "what did not arrive is sent again"
    assert [event.message for event in first[:3]] == [
        "Memory ran out.",
        "No better for 3 evaluations.",
        "Warning 7.",
    ]
    assert len(first) == 16
    assert first[-1].name == "events-left-out"
    assert first[-1].message.startswith("7 events of this attempt came too fast")
    state.add_event("warning", "One more.")
    reporter.send_if_changed()
    [told] = ProgressReport.model_validate_json(post.bodies[2]).anneal.events
    assert told.message == "One more."
    for number in range(17):
        state.add_event("recovered", f"Recovery {number}.")
    reporter.send_if_changed()
    last = ProgressReport.model_validate_json(post.bodies[3]).anneal.events
    assert [last[0].message, last[-1].message[:9]] == ["Recovery 2.", "9 events "]


def test_events_that_make_room_while_their_report_is_on_its_way_are_not_counted_left_out() -> None:
    state, bodies = RunState(), []

    def post(body: bytes, *, timeout_seconds: float) -> int:
        bodies.append(body)
        if len(bodies) == 1:
            for number in range(3):
                state.add_event("warning", f"Meanwhile {number}.")
        return 200

    reporter = reporter_of(state, post)
    for number in range(17):
        state.add_event("warning", f"Warning {number}.")
    for _ in range(2):
        reporter.send_if_changed()
    first, second = (ProgressReport.model_validate_json(body).anneal.events for body in bodies)
    assert first[-1].message.startswith("2 events of this attempt")
    assert [event.message for event in second] == [f"Meanwhile {number}." for number in range(3)]
    for number in range(16):
        state.add_event("warning", f"Later {number}.")
    reporter.send_if_changed()
    third = ProgressReport.model_validate_json(bodies[2]).anneal.events
    assert third[-1].message.startswith("3 events of this attempt")


def test_events_that_make_room_for_others_are_counted_when_their_report_does_not_arrive() -> None:
    state, bodies = RunState(), []

    def post(body: bytes, *, timeout_seconds: float) -> int:
        bodies.append(body)
        if len(bodies) == 1:
            state.add_event("warning", "Meanwhile.")
        return 500 if len(bodies) == 1 else 200

    reporter = reporter_of(state, post)
    for number in range(15):
        state.add_event("warning", f"Warning {number}.")
    for _ in range(2):
        reporter.send_if_changed()
    second = ProgressReport.model_validate_json(bodies[1]).anneal.events
    assert second[-1].message.startswith("1 events of this attempt")


def test_the_last_report_waits_less_for_its_answer_than_the_others() -> None:
    state, waited = RunState(), []

    def post(body: bytes, *, timeout_seconds: float) -> int:
        waited.append(timeout_seconds)
        return 200

    reporter = ProgressReporter(state, post=post, attempt=2, interval_seconds=3600.0)
    state.set_step(step_report(1))
    reporter.send_if_changed()
    state.set_step(step_report(2))
    reporter.start()
    reporter.close()
    assert waited == [10.0, 2.0]


def test_a_report_without_an_answer_holds_up_neither_the_end_nor_sends_another_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "_LAST_TIMEOUT_SECONDS", 0.01)
    state, bodies = RunState(), []
    is_on_its_way, may_answer = Event(), Event()

    def post(body: bytes, *, timeout_seconds: float) -> int:
        bodies.append(body)
        is_on_its_way.set()
        assert may_answer.wait(timeout=60)
        return 200

    state.set_step(step_report(1))
    reporter = ProgressReporter(state, post=post, attempt=2, interval_seconds=0.0)
    reporter.start()
    assert is_on_its_way.wait(timeout=60)
    state.set_step(step_report(2))
    reporter.close()
    [thread] = [thread for thread in enumerate_threads() if thread.name == "progress"]
    may_answer.set()
    thread.join()
    assert len(bodies) == 1


def test_what_happened_after_the_last_report_is_sent_when_reporting_ends() -> None:
    state, post = RunState(), Recorder()
    reporter = ProgressReporter(state, post=post, attempt=2, interval_seconds=3600.0)
    reporter.start()
    state.add_event("recovered", "Rows left out.")
    reporter.close()
    [body] = post.bodies
    [event] = ProgressReport.model_validate_json(body).anneal.events
    assert event.message == "Rows left out."


def test_a_stale_attempt_learns_it_and_is_silent_from_then_on() -> None:
    state, post = RunState(), Recorder(409)
    reporter = reporter_of(state, post)
    state.set_step(step_report(1))
    reporter.send_if_changed()
    state.set_step(step_report(2))
    reporter.send_if_changed()
    assert reporter.is_stale
    assert len(post.bodies) == 1


def test_a_loss_that_is_no_number_does_not_break_the_report() -> None:
    state, post = RunState(), Recorder()
    state.set_step(step_report(1, loss=float("nan")))
    reporter_of(state, post).send_if_changed()
    assert "loss" not in json.loads(post.bodies[0])["anneal"]


def test_at_most_one_report_in_five_seconds() -> None:
    assert MIN_INTERVAL_SECONDS == 5.0


class TestOutcome:
    outcome = outcome_of_error(UserError("DatasetEmpty", "There are no rows."))

    def send(self, post: Recorder, *, within_seconds: float = 30.0) -> tuple[bool, list[float]]:
        slept: list[float] = []
        sent = send_outcome(
            self.outcome,
            post=post,
            attempt=1,
            within_seconds=within_seconds,
            clock=lambda: sum(slept),
            sleep=slept.append,
        )
        return sent, slept

    def test_is_tried_again_until_it_arrives(self) -> None:
        post = Recorder(OSError("refused"), 503, 200)
        sent, _ = self.send(post)
        assert sent
        assert len(post.bodies) == 3
        assert json.loads(post.bodies[2])["anneal"]["outcome"]["reason"] == "DatasetEmpty"

    def test_is_given_up_when_the_time_is_over(self) -> None:
        post = Recorder(*[OSError("refused")] * 100)
        sent, slept = self.send(post, within_seconds=10.0)
        assert not sent
        assert sum(slept) < 10.0

    def test_of_a_stale_attempt_is_not_pressed(self) -> None:
        post = Recorder(409)
        assert self.send(post) == (False, [])


@pytest.mark.parametrize("environment", [{}, {"KUBEFLOW_TRAINER_SERVER_URL": ""}])
def test_where_nobody_listens_there_is_no_server(environment: dict[str, str]) -> None:
    assert ProgressServer.from_environment(environment) is None


def test_the_server_is_read_from_kubeflows_variables() -> None:
    server = ProgressServer.from_environment(
        {
            "KUBEFLOW_TRAINER_SERVER_URL": "https://anneal/status",
            "KUBEFLOW_TRAINER_SERVER_CA_CERT": "/ca/ca.crt",
            "KUBEFLOW_TRAINER_SERVER_TOKEN": "/token",
        }
    )
    assert server is not None
    assert (server.url, str(server.token_path), str(server.ca_path)) == (
        "https://anneal/status",
        "/token",
        "/ca/ca.crt",
    )


def test_the_token_is_read_again_for_each_request(tmp_path: Path) -> None:
    shown = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            shown.append(self.headers["Authorization"])
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing on the terminal."""

    with HTTPServer(("127.0.0.1", 0), Handler) as listening:
        Thread(target=listening.serve_forever, args=(0.01,), daemon=True).start()
        token = tmp_path / "token"
        server = ProgressServer(
            url=f"http://127.0.0.1:{listening.server_port}", token_path=token, ca_path=None
        )
        for text in ("first\n", "second\n"):
            token.write_text(text)
            assert server.post(b"{}", timeout_seconds=60.0) == 200
        listening.shutdown()
    assert shown == ["Bearer first", "Bearer second"]


def test_the_ca_is_read_again_for_each_request(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t")
    ca = tmp_path / "ca.crt"
    server = ProgressServer(url="https://127.0.0.1:1", token_path=tmp_path / "token", ca_path=ca)
    with pytest.raises(FileNotFoundError):
        server.post(b"{}", timeout_seconds=60.0)
    ca.write_text("no certificate")
    with pytest.raises(ssl.SSLError):
        server.post(b"{}", timeout_seconds=60.0)
