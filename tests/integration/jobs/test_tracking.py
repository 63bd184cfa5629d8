"""Tracking against a real MLflow server with proxied artefacts."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus

from anneal_jobs.errors import InfrastructureError
from anneal_jobs.event_log import EventLog
from anneal_jobs.observer import RunObserver
from anneal_jobs.run_state import RunState
from anneal_jobs.tracking.connection import connect
from anneal_jobs.tracking.local_run import close_run, ensure_run
from anneal_jobs.tracking.parameters import write_parameters, write_tags
from anneal_jobs.tracking.registration import Registration, logged_model_name, register
from anneal_jobs.tracking.run_logs import send_logs
from anneal_jobs.tracking.writer import Action, RunWriter
from anneal_operator.api.names import TAG_ARTEFACT_DIGEST, TAG_JOB_UID
from anneal_pipeline import observer as pipeline

from .conftest import MlflowServer, free_port

LONG_SECONDS = 300.0


@pytest.fixture
def client(mlflow_server: MlflowServer) -> MlflowClient:
    return connect(mlflow_server.uri, credentials=Path("/nonexistent"))


@pytest.fixture
def run_id(client: MlflowClient, request: pytest.FixtureRequest) -> str:
    experiment = client.create_experiment(request.node.name)
    return str(client.create_run(experiment).info.run_id)


@pytest.fixture
def writer(client: MlflowClient, run_id: str) -> Iterator[RunWriter]:
    writer = RunWriter(client, run_id, linger_seconds=0.1)
    writer.start()
    yield writer
    writer.close()


def steps_of(client: MlflowClient, run_id: str, key: str = "train/loss") -> list[int]:
    return [point.step for point in client.get_metric_history(run_id, key)]


def add_steps(writer: RunWriter, first: int, last: int) -> None:
    for step in range(first, last + 1):
        writer.add({"train/loss": 1.0 / step}, step=step)


def test_points_arrive_in_order_and_the_run_stays_open(
    client: MlflowClient, run_id: str, writer: RunWriter
) -> None:
    add_steps(writer, 1, 1500)
    assert writer.flush(within_seconds=LONG_SECONDS)
    assert steps_of(client, run_id) == list(range(1, 1501))
    writer.close()
    assert client.get_run(run_id).info.status == "RUNNING"


def test_an_outage_delays_points_and_loses_none(
    mlflow_server: MlflowServer, client: MlflowClient, run_id: str, writer: RunWriter
) -> None:
    add_steps(writer, 1, 5)
    assert writer.flush(within_seconds=LONG_SECONDS)
    mlflow_server.stop()
    try:
        add_steps(writer, 6, 10)
        assert not writer.flush(within_seconds=0.5)
        kept = writer.save_state()["pendingMetrics"]
        assert [step for _, _, step, _ in kept] == [6, 7, 8, 9, 10]
    finally:
        mlflow_server.start()
    assert writer.flush(within_seconds=LONG_SECONDS)
    assert steps_of(client, run_id) == list(range(1, 11))


def test_a_resumed_attempt_leaves_neither_gap_nor_duplicate(
    client: MlflowClient, run_id: str, writer: RunWriter
) -> None:
    # The first attempt saved a checkpoint at step 4 with points 3 and 4 not yet acknowledged; then
    # points 3 to 6 arrived all the same, and it died.
    add_steps(writer, 1, 2)
    assert writer.flush(within_seconds=LONG_SECONDS)
    unsent = RunWriter(client, run_id)
    add_steps(unsent, 3, 4)
    state = unsent.save_state()
    writer.load_state(state)
    add_steps(writer, 5, 6)
    assert writer.flush(within_seconds=LONG_SECONDS)

    second = RunWriter(client, run_id, linger_seconds=0.1)
    second.load_state(state)
    second.start()
    add_steps(second, 5, 9)
    assert second.flush(within_seconds=LONG_SECONDS)
    second.close()
    assert steps_of(client, run_id) == list(range(1, 10))


def history_of(client: MlflowClient, run_id: str) -> list[tuple[int, float]]:
    history = client.get_metric_history(run_id, "train/loss")
    return [(p.step, p.value) for p in sorted(history, key=lambda p: (p.step, p.timestamp))]


def test_steps_taken_again_stand_once_on_the_new_way_over_restarts_and_are_named(
    client: MlflowClient, run_id: str, writer: RunWriter
) -> None:
    def add(to: RunWriter, first: int, last: int, *, way: int) -> None:
        for step in range(first, last + 1):
            to.add({"train/loss": float(way)}, step=step)

    def resume(state: str) -> RunWriter:
        resumed = RunWriter(client, run_id, linger_seconds=0.1)
        resumed.load_state(json.loads(state))
        resumed.start()
        return resumed

    add(writer, 1, 6, way=1)
    writer.go_back(step=6, back_to=2)
    state = json.dumps(writer.save_state())
    add(writer, 3, 4, way=2)
    assert writer.flush(within_seconds=LONG_SECONDS)
    old = [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 1.0), (6, 1.0)]
    assert history_of(client, run_id) == sorted([*old, (3, 2.0), (4, 2.0)])

    second = resume(state)
    add(second, 3, 5, way=2)
    assert second.flush(within_seconds=LONG_SECONDS)
    assert history_of(client, run_id) == sorted([*old, (3, 2.0), (4, 2.0), (5, 2.0)])
    second.go_back(step=5, back_to=4)
    state = json.dumps(second.save_state())
    add(second, 5, 5, way=3)
    assert second.flush(within_seconds=LONG_SECONDS)
    second.close()

    third = resume(state)
    add(third, 5, 7, way=3)
    assert third.flush(within_seconds=LONG_SECONDS)
    third.close()
    new = [(3, 2.0), (4, 2.0), (5, 2.0), (5, 3.0), (6, 3.0), (7, 3.0)]
    assert history_of(client, run_id) == sorted([*old, *new])
    tags = client.get_run(run_id).data.tags
    assert "of the points at steps 3 to 6" in tags["anneal.replaced.step-000003-000006"]
    assert "of the points at steps 5 to 5" in tags["anneal.replaced.step-000005-000005"]


def test_points_of_the_new_way_count_as_later_on_a_node_whose_clock_is_behind(
    client: MlflowClient, run_id: str, writer: RunWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_steps(writer, 1, 6)
    assert writer.flush(within_seconds=LONG_SECONDS)
    writer.go_back(step=6, back_to=2)
    state = writer.save_state()
    monkeypatch.setattr("time.time_ns", lambda: 1_000_000_000)
    second = RunWriter(client, run_id, linger_seconds=0.1)
    second.load_state(state)
    second.start()
    add_steps(second, 3, 4)
    assert second.flush(within_seconds=LONG_SECONDS)
    second.close()
    assert sorted(steps_of(client, run_id)) == [1, 2, 3, 3, 4, 4, 5, 6]


def observer_of(run_id: str, writer: RunWriter, folder: Path) -> RunObserver:
    return RunObserver(
        state=RunState(),
        stop_file=folder / "stop",
        writer=writer,
        reporter=None,
        uploader=None,
        display=None,
        events=EventLog(folder / "events.jsonl", run=run_id, attempt=1),
        workspace=folder,
    )


def event_tags(client: MlflowClient, run_id: str) -> dict[str, str]:
    tags = client.get_run(run_id).data.tags
    return {key: value for key, value in tags.items() if key.startswith("anneal.")}


def test_every_action_of_a_recovery_is_a_tag_of_the_run(
    client: MlflowClient, run_id: str, writer: RunWriter, tmp_path: Path
) -> None:
    observer = observer_of(run_id, writer, tmp_path)
    for kind in ("oom", "nan", "divergence"):
        observer.on_event(pipeline.EVENT_RECOVERED, f"{kind} happened", {"kind": kind, "step": 4})
    for name in (pipeline.EVENT_EARLY_STOP, pipeline.EVENT_BEST_RESTORED):
        observer.on_event(name, f"{name} happened", {"step": 9})
    assert writer.flush(within_seconds=LONG_SECONDS)
    assert event_tags(client, run_id) == {
        "anneal.recovered.oom.step-000004": "oom happened",
        "anneal.recovered.nan.step-000004": "nan happened",
        "anneal.recovered.divergence.step-000004": "divergence happened",
        "anneal.early-stop.step-000009": "early-stop happened",
        "anneal.best-restored.step-000009": "best-restored happened",
    }


def test_events_of_one_kind_and_step_stand_beside_each_other_in_all_attempts(
    client: MlflowClient, run_id: str, writer: RunWriter, tmp_path: Path
) -> None:
    first = observer_of(run_id, writer, tmp_path)
    halved = {"kind": "oom", "step": 4}
    first.on_event(pipeline.EVENT_RECOVERED, "4 rows", halved)
    first.on_event(pipeline.EVENT_RECOVERED, "2 rows", halved)
    first.on_event(pipeline.EVENT_RECOVERED, "8 rows in an evaluation", {"kind": "oom"})
    saved = first.save_state()
    first.on_event(pipeline.EVENT_RECOVERED, "lost with its step", {"kind": "oom"})

    second = observer_of(run_id, writer, tmp_path)
    rejected = {"checkpoint": "step-000006-a01-1f2e3d4c"}
    second.on_event(pipeline.EVENT_CHECKPOINT_REJECTED, "a byte flipped", rejected)
    second.load_state(saved)
    second.on_event(pipeline.EVENT_RECOVERED, "4 rows in an evaluation", {"kind": "oom"})
    assert writer.flush(within_seconds=LONG_SECONDS)
    assert event_tags(client, run_id) == {
        "anneal.recovered.oom.step-000004": "4 rows",
        "anneal.recovered.oom.step-000004.2": "2 rows",
        "anneal.recovered.oom": "8 rows in an evaluation",
        "anneal.recovered.oom.2": "4 rows in an evaluation",
        "anneal.checkpoint-rejected.step-000006-a01-1f2e3d4c": "a byte flipped",
    }


def test_points_lost_on_the_way_are_replayed(
    client: MlflowClient, run_id: str, writer: RunWriter
) -> None:
    unsent = RunWriter(client, run_id)
    add_steps(unsent, 1, 4)
    writer.load_state(unsent.save_state())
    add_steps(writer, 5, 6)
    assert writer.flush(within_seconds=LONG_SECONDS)
    assert steps_of(client, run_id) == [1, 2, 3, 4, 5, 6]


def test_parameters_are_written_once_and_keep_their_first_value(
    client: MlflowClient, run_id: str
) -> None:
    values = {f"p{i}": str(i) for i in range(130)} | {"long": "x" * 7000}
    write_parameters(client, run_id, values)
    write_parameters(client, run_id, values | {"p1": "changed", "new": "1"})
    params = client.get_run(run_id).data.params
    assert (params["p1"], params["new"], len(params["long"])) == ("1", "1", 6000)
    write_tags(client, run_id, {"anneal.attempt": "1"})
    write_tags(client, run_id, {"anneal.attempt": "2"})
    assert client.get_run(run_id).data.tags["anneal.attempt"] == "2"


def test_a_refused_item_does_not_hold_up_the_others(
    client: MlflowClient, run_id: str, writer: RunWriter
) -> None:
    def refused(client: MlflowClient, run_id: str) -> None:
        client.set_tag(run_id, "k" * 5000, "too long a key")

    writer.submit(Action(name="impossible tag", write=refused))
    add_steps(writer, 1, 2)
    assert writer.flush(within_seconds=LONG_SECONDS)
    assert steps_of(client, run_id) == [1, 2]


class TestRegistration:
    @pytest.fixture
    def registration(self, tmp_path: Path, request: pytest.FixtureRequest) -> Registration:
        folder = tmp_path / "adapter"
        folder.mkdir()
        (folder / "adapter_config.json").write_text("{}")
        (folder / "adapter_model.safetensors").write_bytes(b"weights")
        return Registration(
            name=f"bot-3.2-{request.node.name[:24]}",
            alias="candidate",
            adapter_dir=folder,
            tags={TAG_JOB_UID: "uid-1", TAG_ARTEFACT_DIGEST: "sha256:1"},
            description="A bot.",
            metrics={"tunedPerplexity": 3.5},
            step=10,
        )

    def test_twice_makes_one_version(
        self, client: MlflowClient, run_id: str, registration: Registration
    ) -> None:
        name = registration.name
        assert register(client, run_id, registration) == f"{name}/1"
        assert register(client, run_id, registration) == f"{name}/1"
        assert len(client.search_model_versions(f"name = '{name}'")) == 1
        assert client.get_run(run_id).data.metrics["final/tunedPerplexity"] == 3.5

    def test_a_registry_that_stays_silent_fails_as_infrastructure_after_the_stated_time(
        self, run_id: str, registration: Registration, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        times = iter((0.0, 100.0, 299.0))
        silent = MlflowClient(f"http://127.0.0.1:{free_port()}")
        with pytest.raises(
            InfrastructureError, match=r"did not answer for 300 s \(Connection refused\)"
        ) as caught:
            register(silent, run_id, registration, clock=lambda: next(times), sleep=lambda _: None)
        assert caught.value.reason == "TrackingFailed"
        assert next(times, None) is None

    def test_another_job_makes_the_next_version_and_gets_the_alias(
        self, client: MlflowClient, run_id: str, registration: Registration
    ) -> None:
        register(client, run_id, registration)
        tags = {TAG_JOB_UID: "uid-2", TAG_ARTEFACT_DIGEST: "sha256:2"}
        other = dataclasses.replace(registration, tags=tags)
        assert register(client, run_id, other) == f"{registration.name}/2"
        version = client.get_model_version_by_alias(registration.name, "candidate")
        assert (version.version, version.tags[TAG_JOB_UID]) == ("2", "uid-2")

    def test_a_registration_cut_short_is_finished(
        self, client: MlflowClient, run_id: str, registration: Registration
    ) -> None:
        register(client, run_id, registration)
        client.delete_registered_model_alias(registration.name, "candidate")
        assert register(client, run_id, registration) == f"{registration.name}/1"
        version = client.get_model_version_by_alias(registration.name, "candidate")
        assert version.version == "1"

    def test_the_run_shows_the_model_as_its_output_once(
        self, client: MlflowClient, run_id: str, registration: Registration
    ) -> None:
        register(client, run_id, registration)
        client.delete_registered_model(registration.name)
        register(client, run_id, registration)
        run = client.get_run(run_id)
        [output] = run.outputs.model_outputs
        model = client.get_logged_model(output.model_id)
        version = client.get_model_version_by_alias(registration.name, "candidate")
        assert (output.step, version.source) == (10, f"models:/{model.model_id}")
        assert model.name == logged_model_name(registration.name)
        assert model.status == LoggedModelStatus.READY
        assert [metric.key for metric in model.metrics or []] == ["final/tunedPerplexity"]

    def test_a_model_cut_short_is_finished_and_not_begun_again(
        self, client: MlflowClient, run_id: str, registration: Registration
    ) -> None:
        run = client.get_run(run_id)
        begun = client.create_logged_model(
            run.info.experiment_id,
            name=logged_model_name(registration.name),
            source_run_id=run_id,
            tags=dict(registration.tags),
        )
        assert run.outputs is None or run.outputs.model_outputs == []
        register(client, run_id, registration)
        models = client.search_logged_models(
            [run.info.experiment_id], filter_string=f"source_run_id = '{run_id}'"
        )
        assert [m.model_id for m in models] == [begun.model_id]
        assert models[0].status == LoggedModelStatus.READY
        [output] = client.get_run(run_id).outputs.model_outputs
        assert output.model_id == begun.model_id

    def test_the_files_load_by_alias_without_storage_credentials(
        self,
        client: MlflowClient,
        run_id: str,
        registration: Registration,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        register(client, run_id, registration)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
        folder = mlflow.artifacts.download_artifacts(
            f"models:/{registration.name}@candidate", dst_path=str(tmp_path / "loaded")
        )
        assert (Path(folder) / "adapter_model.safetensors").read_bytes() == b"weights"


def test_logs_lie_beside_the_run(client: MlflowClient, run_id: str, tmp_path: Path) -> None:
    logs = [tmp_path / name for name in ("driver.log", "events.jsonl", "rank-0.log")]
    for log in logs:
        log.write_text("token hf_ABCDEFGHIJKLMNOPQRSTUVWX\n")
    client.set_terminated(run_id, "FAILED")
    assert send_logs(client, run_id, logs, folder="logs/attempt-01", within_seconds=LONG_SECONDS)
    assert [file.path for file in client.list_artifacts(run_id, "logs/attempt-01")] == [
        "logs/attempt-01/driver.log",
        "logs/attempt-01/events.jsonl",
        "logs/attempt-01/rank-0.log",
    ]
    folder = Path(client.download_artifacts(run_id, "logs/attempt-01", str(tmp_path / "shown")))
    assert (folder / "driver.log").read_text() == "token ***\n"
    assert (folder / "events.jsonl").read_bytes() == logs[1].read_bytes(), "masked when written"


def test_logs_wait_for_no_server_that_is_down(tmp_path: Path) -> None:
    client = connect(f"http://127.0.0.1:{free_port()}")
    logs = [tmp_path / "driver.log"]
    logs[0].write_text("one line")
    assert not send_logs(client, "run", logs, folder="logs", within_seconds=0.1)


def test_a_local_job_finds_its_run_again(client: MlflowClient) -> None:
    def ensure() -> str:
        return ensure_run(
            client,
            experiment="local-jobs",
            artifact_location=None,
            job_name="tiny",
            job_uid="uid-local",
            tags={"team": "a"},
            note="Goes on.",
        )

    first = ensure()
    close_run(client, first, end="KILLED", note="Interrupted.")
    run = client.get_run(first)
    assert (run.info.status, run.data.tags["mlflow.note.content"]) == ("KILLED", "Interrupted.")
    assert ensure() == first
    run = client.get_run(first)
    assert (run.info.status, run.data.tags["team"]) == ("RUNNING", "a")
    assert run.data.tags["mlflow.note.content"] == "Goes on."
