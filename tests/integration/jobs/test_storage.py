"""Storage against a real S3 server that checks signatures."""

import base64
import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from anneal_jobs.cli.model_import import upload_to
from anneal_jobs.errors import StorageUnreachableError
from anneal_jobs.storage.credentials import CredentialsPlace
from anneal_jobs.storage.dataset import fetch_dataset
from anneal_jobs.storage.model import fetch_model
from anneal_jobs.storage.outputs import OutputUploader, restore_workspace
from anneal_jobs.storage.places import open_folder
from anneal_jobs.storage.s3 import S3Folder, S3Settings, connect
from anneal_jobs.storage.source import SourceAccess, fetch_files, list_source
from anneal_jobs.storage.uri import parse_uri
from anneal_pipeline.checkpoint.manifest import CheckpointInfo
from anneal_pipeline.checkpoint.store import Best, CheckpointStore
from anneal_pipeline.config.dataset import DatasetConfig
from anneal_pipeline.config.model import ModelConfig
from anneal_pipeline.errors import StopRequestedError, UserError

from .conftest import ACCESS_KEY, BUCKET, S3Server, free_port, write_credentials


def no_report(done: int, total: int) -> None:
    """Nobody listens."""


@pytest.fixture
def folder(s3: S3Server, request: pytest.FixtureRequest) -> S3Folder:
    return S3Folder(connect(s3.settings), parse_uri(f"s3://{BUCKET}/{request.node.name[:40]}"))


def test_small_files_come_back_as_written(folder: S3Folder) -> None:
    folder.write("a/b.json", b"{}")
    folder.write("a/b.json", b"[1]")
    assert folder.read("a/b.json") == b"[1]"
    assert folder.read("a/none.json") is None
    assert folder.list_names() == ["a/b.json"]
    folder.delete("a/b.json")
    folder.delete("a/b.json")
    assert folder.list_names() == []


@pytest.mark.parametrize("size", [0, 1, (16 << 20) - 1, 16 << 20, (33 << 20) + 7])
def test_an_upload_is_checked_and_comes_back_bit_by_bit(
    folder: S3Folder, tmp_path: Path, size: int
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(size))
    folder.upload(source, "weights.bin")
    folder.download("weights.bin", target)
    assert (
        hashlib.sha256(target.read_bytes()).digest() == hashlib.sha256(source.read_bytes()).digest()
    )
    assert [(entry.name, entry.size) for entry in folder.list_objects()] == [("weights.bin", size)]


@pytest.mark.parametrize(
    ("target", "want"),
    [
        pytest.param("kept/", "kept/rows.jsonl", id="folder"),
        pytest.param("kept/new.jsonl", "kept/new.jsonl", id="object"),
    ],
)
def test_a_file_keeps_its_name_in_a_folder(
    s3: S3Server, tmp_path: Path, target: str, want: str
) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    made = upload_to(
        tmp_path / "rows.jsonl", f"s3://{BUCKET}/{target}", s3_endpoint=s3.settings.endpoint
    )
    assert made == f"s3://{BUCKET}/{want}"
    assert S3Folder(connect(s3.settings), parse_uri(made)).read("") == b"{}\n"


class TestProgressWithinAFile:
    SIZE = 40 << 20

    @pytest.fixture
    def source(self, folder: S3Folder, tmp_path: Path) -> Path:
        path = tmp_path / "weights.bin"
        path.write_bytes(os.urandom(self.SIZE))
        return path

    def test_bytes_are_told_while_one_file_comes_and_goes(
        self, folder: S3Folder, source: Path, tmp_path: Path
    ) -> None:
        sent: list[int] = []
        folder.upload(source, "weights.bin", on_chunk=sent.append)
        assert sum(sent) == self.SIZE
        assert len(sent) > 3
        seen: list[tuple[int, int]] = []
        files = list_source(
            folder.uri,
            kind="model",
            revision=None,
            not_found_reason="ModelNotFound",
            access=SourceAccess(s3=S3Settings(endpoint=folder.endpoint)),
        )
        [path] = fetch_files(files, to=tmp_path / "to", on_bytes=lambda *b: seen.append(b))
        assert path.read_bytes() == source.read_bytes()
        assert seen[0] == (0, self.SIZE)
        assert seen[-1] == (self.SIZE, self.SIZE)
        assert len({done for done, _ in seen}) > 10

    @pytest.mark.usefixtures("ended_transfers_are_forgotten")
    def test_a_stop_in_the_middle_ends_the_transfer_and_leaves_nothing(
        self, folder: S3Folder, source: Path, tmp_path: Path
    ) -> None:
        folder.upload(source, "weights.bin")
        seen = 0

        def stop(count: int) -> None:
            nonlocal seen
            seen += count
            if seen > 1 << 20:
                raise StopRequestedError

        (tmp_path / "to").mkdir()
        with pytest.raises(StopRequestedError):
            folder.download("weights.bin", tmp_path / "to" / "weights.bin", on_chunk=stop)
        assert list((tmp_path / "to").iterdir()) == []
        assert seen < self.SIZE


def test_the_server_itself_checks_the_digest_of_a_part(s3: S3Server, tmp_path: Path) -> None:
    client = connect(s3.settings)
    wrong = base64.b64encode(hashlib.sha256(b"something else").digest()).decode()
    with pytest.raises(client.exceptions.ClientError, match=r"(?i)checksum|digest"):
        client.put_object(Bucket=BUCKET, Key="checked", Body=b"content", ChecksumSHA256=wrong)


def test_listing_tells_an_object_from_a_folder_and_from_a_neighbour(s3: S3Server) -> None:
    client = connect(s3.settings)
    S3Folder(client, parse_uri(f"s3://{BUCKET}/tell/rows")).write("one.jsonl", b"1")
    S3Folder(client, parse_uri(f"s3://{BUCKET}/tell")).write("rows-old.jsonl", b"22")

    def listed(path: str) -> list[str]:
        return S3Folder(client, parse_uri(f"s3://{BUCKET}/{path}")).list_names()

    assert listed("tell/rows") == ["one.jsonl"]
    assert listed("tell/rows-old.jsonl") == [""]
    assert listed("tell/row") == []


class TestFaults:
    def read(self, address: str, settings: S3Settings) -> None:
        fetch_dataset(
            DatasetConfig(uri=address),
            to=Path("unused"),
            access=SourceAccess(s3=settings),
            on_bytes=no_report,
        )

    def test_missing_object(self, s3: S3Server) -> None:
        with pytest.raises(UserError, match=f"s3://{BUCKET}/gone.jsonl.*correct dataset.uri") as e:
            self.read(f"s3://{BUCKET}/gone.jsonl", s3.settings)
        assert e.value.reason == "DatasetNotFound"

    def test_empty_object(self, s3: S3Server) -> None:
        uri = f"s3://{BUCKET}/empty.jsonl"
        S3Folder(connect(s3.settings), parse_uri(uri)).write("", b"")
        with pytest.raises(UserError, match=f"{uri} has no rows") as e:
            self.read(uri, s3.settings)
        assert e.value.reason == "DatasetEmpty"

    def test_missing_bucket(self, s3: S3Server) -> None:
        with pytest.raises(UserError, match="bucket 'no-such-bucket' does not exist") as e:
            self.read("s3://no-such-bucket/rows.jsonl", s3.settings)
        assert e.value.reason == "BucketNotFound"

    @pytest.mark.parametrize(
        ("access_key", "secret", "why"),
        [
            pytest.param(ACCESS_KEY, "wrong", "secret access key is wrong", id="wrong secret"),
            pytest.param("nobodysaccesskey0000", "wrong", "access key id", id="unknown key"),
        ],
    )
    def test_wrong_credentials(
        self,
        s3: S3Server,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        access_key: str,
        secret: str,
        why: str,
    ) -> None:
        path = write_credentials(tmp_path / "wrong", access_key=access_key, secret=secret)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
        with pytest.raises(UserError, match=why) as e:
            self.read(f"s3://{BUCKET}/rows.jsonl", s3.settings)
        assert e.value.reason == "StorageAccessDenied"
        assert f"correct profile default in {path}" in e.value.message
        assert secret not in e.value.message.replace("wrong (", "").split("because", 1)[0]

    def test_in_a_cluster_the_secret_is_named(
        self, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write_credentials(tmp_path / "wrong", access_key="nobody", secret="wrong")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
        place = CredentialsPlace(wrong="correct Secret team-s3", absent="make Secret team-s3")
        settings = replace(s3.settings, credentials=place)
        with pytest.raises(UserError, match=r"correct Secret team-s3\.$"):
            self.read(f"s3://{BUCKET}/rows.jsonl", settings)
        with pytest.raises(UserError, match=r"correct Secret team-s3\.$"):
            open_folder(parse_uri(f"s3://{BUCKET}/out"), settings).write("x", b"1")

    def test_no_credentials(self, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
        with pytest.raises(UserError, match="there are no S3 credentials") as e:
            self.read(f"s3://{BUCKET}/rows.jsonl", s3.settings)
        assert e.value.reason == "StorageAccessDenied"

    def test_no_server_is_not_the_users_fault(self, s3: S3Server) -> None:
        settings = S3Settings(endpoint=f"http://127.0.0.1:{free_port()}", max_attempts=1)
        with pytest.raises(StorageUnreachableError, match="does not answer"):
            self.read(f"s3://{BUCKET}/rows.jsonl", settings)


class TestModels:
    def fetch(self, s3: S3Server, files: dict[str, bytes], to: Path) -> Path:
        address = f"s3://{BUCKET}/models/{to.parent.name}"
        folder = S3Folder(connect(s3.settings), parse_uri(address))
        for name, data in files.items():
            folder.write(name, data)
        return fetch_model(
            ModelConfig(uri=address),
            to=to,
            access=SourceAccess(s3=s3.settings),
            on_bytes=no_report,
        ).folder

    def test_only_weights_config_and_tokenizer_are_fetched(
        self, s3: S3Server, tmp_path: Path
    ) -> None:
        files = {"model.safetensors": b"w", "config.json": b"{}", "tokenizer.json": b"{}"}
        unwanted = {
            "modeling_evil.py": b"",
            "pytorch_model.bin": b"",
            "onnx/model.safetensors": b"",
        }
        found = self.fetch(s3, files | unwanted, tmp_path / "model")
        assert {path.name for path in found.iterdir()} == set(files)

    @pytest.mark.parametrize(
        ("files", "reason"),
        [
            pytest.param({}, "ModelNotFound", id="nothing there"),
            pytest.param({"m-q4.gguf": b"g"}, "ModelIsGguf", id="gguf"),
            pytest.param(
                {"config.json": b"{}", "pytorch_model.bin": b"p"},
                "ModelNotSafetensors",
                id="pickle",
            ),
            pytest.param({"model.safetensors": b"w"}, "ModelUnsupported", id="no config"),
            pytest.param(
                {"model.safetensors": b"w", "config.json": b"{}"},
                "ModelUnsupported",
                id="no tokenizer",
            ),
            pytest.param(
                {"model.safetensors": b"w", "config.json": b"{", "tokenizer.json": b"{}"},
                "ModelUnsupported",
                id="torn config",
            ),
        ],
    )
    def test_what_is_no_model_is_named(
        self, s3: S3Server, tmp_path: Path, files: dict[str, bytes], reason: str
    ) -> None:
        with pytest.raises(UserError, match=f"s3://{BUCKET}/models/") as e:
            self.fetch(s3, files, tmp_path / "model")
        assert e.value.reason == reason


class TestCheckpoints:
    def store(self, folder: S3Folder, scratch: Path, *, attempt: int) -> CheckpointStore:
        return CheckpointStore(folder, scratch=scratch, attempt=attempt, writer="1f2e3d4c", keep=2)

    def info(self, step: int) -> CheckpointInfo:
        return CheckpointInfo(step=step, config_hash="c", dataset_digest="d", libraries={})

    def test_the_newest_undamaged_one_is_taken(self, folder: S3Folder, tmp_path: Path) -> None:
        source = tmp_path / "state"
        source.mkdir()
        first = self.store(folder, tmp_path / "scratch", attempt=1)
        for step in (1, 2):
            (source / "adapter.safetensors").write_bytes(bytes([step]) * 100)
            first.save(source, self.info(step))
        folder.write("step-000002-a01-1f2e3d4c/adapter.safetensors", b"damaged")
        folder.write("step-000003-a01-1f2e3d4c/adapter.safetensors", b"no manifest")
        saved = self.store(folder, tmp_path / "other", attempt=2).latest()
        assert saved is not None
        assert saved.manifest.step == 1
        assert (saved.folder / "adapter.safetensors").read_bytes() == b"\x01" * 100

    def test_old_ones_go_and_the_best_stays(self, folder: S3Folder, tmp_path: Path) -> None:
        source = tmp_path / "state"
        source.mkdir()
        (source / "adapter.safetensors").write_bytes(b"a")
        store = self.store(folder, tmp_path / "scratch", attempt=1)
        names = [store.save(source, self.info(1)).name]
        store.pin_best(Best(name=names[0], step=1, metric="responsePerplexity", value=2.0))
        names += [store.save(source, self.info(step)).name for step in (2, 3, 4)]
        assert store.names() == [names[3], names[2], names[0]]
        assert not [name for name in folder.list_names() if name.startswith(names[1])]


def test_outputs_are_stored_with_the_mark_last_and_restored(
    folder: S3Folder, tmp_path: Path
) -> None:
    workspace, other = tmp_path / "workspace", tmp_path / "other"
    for name in ("data/train/rows.jsonl", "data/report.json", "artifacts/manifest.json"):
        (workspace / name).parent.mkdir(parents=True, exist_ok=True)
        (workspace / name).write_text(name)
    (workspace / "artifacts" / "z.safetensors").write_bytes(b"z")
    folder.write("checkpoints/step-1/manifest.json", b"{}")
    seen: list[tuple[int, int]] = []
    uploader = OutputUploader(folder, workspace=workspace, on_bytes=lambda *b: seen.append(b))
    uploader.start()
    uploader.add(workspace / "data")
    uploader.add(workspace / "artifacts")
    uploader.finish()
    assert seen[-1][0] == seen[-1][1] > 0
    came: list[tuple[int, int]] = []
    assert restore_workspace(folder, other, on_bytes=lambda *b: came.append(b)) == 4
    assert came[-1] == (sum(p.stat().st_size for p in other.rglob("*") if p.is_file()), 0)
    assert (other / "data" / "report.json").read_text() == "data/report.json"
    assert not (other / "checkpoints").exists()


def test_what_a_stopping_attempt_has_queued_is_stored_or_its_loss_is_told(
    folder: S3Folder, s3: S3Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "milestone").write_text("x")
    settings = S3Settings(endpoint=f"http://127.0.0.1:{free_port()}", max_attempts=1)
    gone = S3Folder(connect(settings), parse_uri(f"s3://{BUCKET}/gone"))
    for place in (folder, gone):
        uploader = OutputUploader(place, workspace=tmp_path, on_bytes=no_report, pause_seconds=0)
        uploader.start()
        uploader.add(tmp_path / "milestone")
        uploader.give_up_after(30.0)
    assert folder.read("milestone") == b"x"
    assert "not all files reached the output folder" in caplog.text


def test_an_upload_that_cannot_be_made_is_told_at_the_end(s3: S3Server, tmp_path: Path) -> None:
    settings = S3Settings(endpoint=f"http://127.0.0.1:{free_port()}", max_attempts=1)
    gone = S3Folder(connect(settings), parse_uri(f"s3://{BUCKET}/gone"))
    (tmp_path / "file").write_text("x")
    uploader = OutputUploader(gone, workspace=tmp_path, on_bytes=no_report, pause_seconds=0)
    uploader.start()
    uploader.add(tmp_path / "file")
    with pytest.raises(StorageUnreachableError, match="does not answer"):
        uploader.finish()
