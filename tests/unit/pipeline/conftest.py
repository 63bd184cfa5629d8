"""`kit`: a language model, tokenizer and rows small enough to be made anew; `bench`: their data."""

from tests.unit.pipeline.bench import bench
from tests.unit.pipeline.fixtures import kit, model_dir

__all__ = ["bench", "kit", "model_dir"]
