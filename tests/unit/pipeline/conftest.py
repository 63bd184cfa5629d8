"""`kit`: a language model, tokenizer and rows small enough to be made anew."""

from tests.unit.pipeline.fixtures import kit, model_dir

__all__ = ["kit", "model_dir"]
