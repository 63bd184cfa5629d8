"""Files of a hub: what is there, what is not given out, and how a file comes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from anneal_jobs.errors import StorageUnreachableError
from anneal_jobs.storage.hub import HubRepository, download_file, look_into
from anneal_jobs.storage.s3 import S3Settings
from anneal_jobs.storage.source import SourceAccess, list_source
from anneal_jobs.storage.uri import parse_uri
from anneal_pipeline.errors import StopRequestedError, UserError

from .conftest import free_port
from .hub_server import COMMIT, Hub, serving

SHARD = bytes(range(256)) * (96 << 10)
REPOSITORY = HubRepository(
    name="org/model", kind="model", revision=COMMIT, not_found_reason="ModelNotFound"
)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as hub:
        hub.repositories["models/org/model"] = {"model.safetensors": SHARD, "config.json": b"{}"}
        yield hub


def test_bytes_are_told_while_a_file_comes(hub: Hub, tmp_path: Path) -> None:
    seen: list[int] = []
    path = download_file(
        REPOSITORY, "model.safetensors", to=tmp_path, endpoint=hub.endpoint, on_chunk=seen.append
    )
    assert path.read_bytes() == SHARD
    assert sum(seen) == len(SHARD)
    assert len(seen) > 1


@pytest.mark.usefixtures("ended_transfers_are_forgotten")
def test_a_stop_in_the_middle_leaves_no_file(hub: Hub, tmp_path: Path) -> None:
    def stop(count: int) -> None:
        raise StopRequestedError

    with pytest.raises(StopRequestedError):
        download_file(
            REPOSITORY, "model.safetensors", to=tmp_path, endpoint=hub.endpoint, on_chunk=stop
        )
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size]
    assert [path for path in left if "safetensors" in path.name or "incomplete" in path.name] == []


def test_what_lies_in_a_repository_is_listed_with_its_sizes(hub: Hub) -> None:
    contents = look_into(REPOSITORY, endpoint=hub.endpoint)
    assert contents.files == [("model.safetensors", len(SHARD)), ("config.json", 2)]
    assert contents.configurations == []


@pytest.mark.parametrize(
    ("name", "revision", "reason", "said"),
    [
        pytest.param(
            "org/gated", COMMIT, "StorageAccessDenied", "gated; accept its licence", id="gated"
        ),
        pytest.param(
            "org/none", COMMIT, "ModelNotFound", "no such model repository", id="no repository"
        ),
        pytest.param("org/model", "v9", "ModelNotFound", "no such revision", id="no revision"),
    ],
)
def test_what_is_not_given_out_is_named(
    hub: Hub, name: str, revision: str, reason: str, said: str
) -> None:
    hub.refusals["models/org/gated"] = (403, "GatedRepo")
    repository = HubRepository(
        name=name, kind="model", revision=revision, not_found_reason="ModelNotFound"
    )
    with pytest.raises(UserError, match=said) as caught:
        look_into(repository, endpoint=hub.endpoint)
    assert caught.value.reason == reason
    assert f"hf://{name} at revision {revision}" in caught.value.message


def test_a_hub_that_does_not_answer_is_not_the_users_mistake() -> None:
    with pytest.raises(StorageUnreachableError, match="does not answer"):
        look_into(REPOSITORY, endpoint=f"http://127.0.0.1:{free_port()}")


def test_a_model_is_a_whole_repository(hub: Hub) -> None:
    access = SourceAccess(s3=S3Settings(), hub_endpoint=hub.endpoint)
    with pytest.raises(UserError, match=r"expected hf://org/model: a base model") as caught:
        list_source(
            parse_uri("hf://org/model/fp16"),
            kind="model",
            revision=COMMIT,
            not_found_reason="ModelNotFound",
            access=access,
        )
    assert caught.value.reason == "UriInvalid"
