import pytest

from anneal_jobs.storage.uri import parse_uri
from anneal_pipeline.errors import UserError


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("s3://bucket/a/b.jsonl", ("s3", "bucket", "a/b.jsonl")),
        ("s3://bucket", ("s3", "bucket", "")),
        ("s3://bucket/folder/", ("s3", "bucket", "folder")),
        ("hf://org/name", ("hf", "org/name", "")),
        ("hf://datasets/org/name", ("hf", "org/name", "")),
        ("hf://org/name/main/train.parquet", ("hf", "org/name", "main/train.parquet")),
        ("pvc://models/llama", ("pvc", "models", "llama")),
        ("rows.jsonl", ("file", "", "rows.jsonl")),
        ("../data/rows.jsonl", ("file", "", "../data/rows.jsonl")),
        ("file:///data/rows.jsonl", ("file", "", "/data/rows.jsonl")),
    ],
)
def test_an_address_is_taken_apart(text: str, want: tuple[str, str, str]) -> None:
    uri = parse_uri(text)
    assert (uri.scheme, uri.container, uri.path) == want


@pytest.mark.parametrize(
    ("text", "why"),
    [
        pytest.param("", "control characters", id="empty"),
        pytest.param(" s3://bucket/a", "outer blanks", id="leading blank"),
        pytest.param("s3://bucket/a\n", "control characters", id="line break"),
        pytest.param("s3://bucket/../other", r"'\.\.'", id="parent folder"),
        pytest.param("s3://bucket/a\\b", "backslash", id="backslash"),
        pytest.param("s3://user:secret@bucket/a", "no bucket name", id="user info"),
        pytest.param("s3://B/a", "no bucket name", id="short upper-case bucket"),
        pytest.param("s3://bucket/a//b", "empty path segment", id="empty segment"),
        pytest.param("hf://name", "hf://organisation/name", id="no organisation"),
        pytest.param("hf://org/name//file", "empty path segment", id="empty segment on the hub"),
        pytest.param("pvc://Claim/a", "no claim name", id="claim"),
        pytest.param("https://host/a", "not supported", id="web address"),
        pytest.param("file://data/a", "absolute path", id="relative file"),
    ],
)
def test_a_wrong_address_is_named_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(UserError, match=why) as e:
        parse_uri(text)
    assert e.value.reason == "UriInvalid"
    assert repr(text) in e.value.message


def test_a_child_lies_below() -> None:
    assert str(parse_uri("s3://bucket/out").child("checkpoints")) == "s3://bucket/out/checkpoints"
    assert str(parse_uri("s3://bucket").child("a")) == "s3://bucket/a"
    assert str(parse_uri("/out").child("a")) == "/out/a"
