"""What cannot be imported as a GGUF file says what was found and what to give instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config

from anneal_pipeline.errors import UserError
from anneal_pipeline.model import gguf_import
from anneal_pipeline.model.gguf_import import find_packaged_gguf, import_gguf


@pytest.mark.parametrize(
    ("package", "said"),
    [
        ("pytest", r"carries no GGUF file among its \d+ files; install another version .* or give"),
        ("no-such-package", r"is not installed.*; install it .* or give the path"),
    ],
)
def test_a_package_without_a_model(package: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        find_packaged_gguf(package)
    assert caught.value.reason == "ModelNotFound"


@pytest.mark.parametrize(
    ("name", "said"),
    [("absent.gguf", r"absent\.gguf, but nothing; give"), (".", "but a folder; give the path")],
)
def test_a_path_without_a_file(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        import_gguf(tmp_path / name, tmp_path / "target")
    assert caught.value.reason == "ModelNotFound"


def test_another_shape_than_llamas_names_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> Any:
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=8, n_positions=8, n_embd=4, n_layer=1, n_head=1)
        return AutoModelForCausalLM.from_config(config)

    monkeypatch.setattr(gguf_import.AutoModelForCausalLM, "from_pretrained", load)
    source = tmp_path / "model.gguf"
    source.write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"holds a GPT2LMHeadModel, .* safetensors folder") as e:
        import_gguf(source, tmp_path / "target")
    assert e.value.reason == "ModelUnsupported"
    assert not (tmp_path / "target").exists()
