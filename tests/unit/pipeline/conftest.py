"""`kit`: a language model, tokenizer and rows small enough to be made anew; `bench`: their data;
`made`: chat templates by family."""

from tests.unit.pipeline.bench import bench
from tests.unit.pipeline.fixtures import kit, model_dir
from tests.unit.pipeline.template_families import made

__all__ = ["bench", "kit", "made", "model_dir"]
