import ast

import pytest

from anneal_jobs.loading_code import from_folder, from_registry
from anneal_operator.api.run_config import JobIdentity, RunConfig, RunTracking, StorageAccess
from anneal_pipeline.config.pipeline import PipelineConfig


def pipeline_of(uri: str, **tuning: object) -> PipelineConfig:
    return PipelineConfig.parse(
        {
            "model": {"uri": uri, **({"revision": "a" * 40} if uri.startswith("hf:") else {})},
            "dataset": {"uri": "rows.jsonl"},
            "tuning": tuning,
        }
    )


@pytest.mark.parametrize("uri", ["hf://org/name", "/models/smollm2", "smollm2"])
def test_a_base_that_loaders_find_is_left_to_them(uri: str) -> None:
    code = from_folder(pipeline_of(uri), "/runs/a/artifacts/adapter")
    ast.parse("\n".join(code))
    assert "folder = '/runs/a/artifacts/adapter'" in code
    assert code[-1] == "model = AutoPeftModelForCausalLM.from_pretrained(folder)"


def test_of_another_base_a_copy_is_asked_for() -> None:
    pipeline = pipeline_of("s3://models/smollm2", newTokens=["<tool>"])
    code = from_folder(pipeline, "/runs/a/artifacts/adapter")
    ast.parse("\n".join(code))
    assert code[-4:] == [
        "base = AutoModelForCausalLM.from_pretrained('./smollm2')  # your copy of "
        "s3://models/smollm2",
        "if len(tokenizer) > base.get_input_embeddings().num_embeddings:",
        "    base.resize_token_embeddings(len(tokenizer))",
        "model = PeftModel.from_pretrained(base, folder)",
    ]


@pytest.mark.parametrize("uri", ["hf://org/name", "pvc://models/smollm2"])
def test_what_loftq_corrects_is_loaded_in_4_bits(uri: str) -> None:
    pipeline = pipeline_of(uri, lora={"initialization": "loftq"}, quantization={"type": "fp4"})
    code = from_folder(pipeline, "/runs/it's mine/adapter")
    ast.parse("\n".join(code))
    assert "bnb_4bit_quant_type='fp4'" in "".join(code)
    [loading] = [line for line in code if "from_pretrained(folder," in line or "'./" in line]
    assert "quantization_config=form" in loading


def test_a_registered_version_is_fetched_first() -> None:
    config = RunConfig(
        job=JobIdentity(namespace="team", name="bot", uid="u"),
        pipeline=pipeline_of("hf://org/name"),
        output_uri="s3://anneal/team/bot",
        storage=StorageAccess(region="us-east-1"),
        tracking=RunTracking(
            uri="http://mlflow", experiment="team", registered_model="bot", alias="candidate"
        ),
    )
    code = from_registry(config, tracking_uri="http://127.0.0.1:5000")
    ast.parse("\n".join(code))
    assert code[0] == "import mlflow"
    assert code[4:6] == [
        "mlflow.set_tracking_uri('http://127.0.0.1:5000')",
        "folder = mlflow.artifacts.download_artifacts('models:/bot@candidate')",
    ]
    for_all = from_registry(config, tracking_uri=None)
    assert for_all[4].startswith("# MLFLOW_TRACKING_URI must be set")
