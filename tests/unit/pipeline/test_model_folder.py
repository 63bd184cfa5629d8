"""What is no model to train on is refused by its file names and its config.json alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from anneal_pipeline.errors import UserError
from anneal_pipeline.model.folder import (
    check_model_config,
    check_model_files,
    check_model_folder,
)

WHOLE = ["config.json", "model.safetensors", "tokenizer.json"]


def test_a_whole_model_is_taken(model_dir: Path) -> None:
    check_model_files(WHOLE, uri="s3://b/m")
    check_model_folder(model_dir, uri=str(model_dir))


@pytest.mark.parametrize(
    ("names", "reason", "part"),
    [
        pytest.param([], "ModelNotFound", "no model at s3://b/m", id="nothing"),
        pytest.param(["m.gguf"], "ModelIsGguf", "models import", id="gguf"),
        pytest.param(["pytorch_model.bin"], "ModelNotSafetensors", "pytorch_model", id="pickle"),
        pytest.param(WHOLE[1:], "ModelUnsupported", "no config.json", id="no config"),
        pytest.param(WHOLE[:2], "ModelUnsupported", "no tokenizer", id="no tokenizer"),
    ],
)
def test_what_is_missing_is_named(names: list[str], reason: str, part: str) -> None:
    with pytest.raises(UserError, match=part) as caught:
        check_model_files(names, uri="s3://b/m")
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("data", "part"),
    [
        pytest.param(b"{", "config.json of the model at s3://b/m is not readable", id="torn"),
        pytest.param(b"[]", "holds a JSON list", id="no object"),
        pytest.param(b'{"auto_map": {}}', "never runs", id="own code"),
        pytest.param(
            b'{"quantization_config": {"quant_method": "gptq"}}', "quantised .gptq", id="quantised"
        ),
    ],
)
def test_a_config_that_cannot_be_used_is_named(data: bytes, part: str) -> None:
    with pytest.raises(UserError, match=part) as caught:
        check_model_config(data, uri="s3://b/m")
    assert caught.value.reason == "ModelUnsupported"


def test_a_gguf_file_named_itself_is_told_as_such(tmp_path: Path) -> None:
    path = tmp_path / "m-q4.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(UserError, match="GGUF") as caught:
        check_model_folder(path, uri=str(path))
    assert caught.value.reason == "ModelIsGguf"
