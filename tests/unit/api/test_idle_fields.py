"""Nothing can be configured that has no effect: every field is used, or refused.

The leaves come from the generated CRDs. A leaf of a FineTuneJob stands in CONSUMERS with the place
that reads it, which is looked up in the syntax tree of that file, or a value other than its default
is refused as not implemented. That a field is read does not prove that it has an effect: this is
for the tests of its reader. Here it is found when nothing looks at a field any more. A leaf of a
FineTuneProfile must change what the operator decides or makes; the manifests are compared.
"""

import ast
import copy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tests.unit.controller.conftest import JOB, MLFLOW, seen

from anneal_operator.admission import output_uri, refusal
from anneal_operator.api.profile import FineTuneProfileSpec
from anneal_operator.api.spec import FineTuneJobSpec
from anneal_operator.api.unsupported import unsupported_fields
from anneal_operator.generate.crd import job_crd, profile_crd
from anneal_operator.manifests import child_job
from anneal_operator.observation import Profile
from anneal_operator.stored_config import run_config

REPOSITORY = Path(__file__).parents[3]
JOBS, OPERATOR = "jobs/anneal_jobs", "operator/anneal_operator"
PIPELINE = "pipeline/anneal_pipeline"

FILES: dict[str, dict[str, str]] = {
    f"{JOBS}/storage/model.py": {"model.uri": "config.uri", "model.revision": "config.revision"},
    f"{JOBS}/storage/dataset.py": {
        "dataset.uri": "config.uri",
        "dataset.files.train": "files.train",
        "dataset.files.validation": "files.validation",
        "dataset.files.test": "files.test",
        "dataset.revision": "config.revision",
    },
    f"{JOBS}/execution.py": {"checkpoint.keep": "checkpoint.keep"},
    f"{JOBS}/train.py": {"checkpoint.graceSeconds": "checkpoint.grace_seconds"},
    f"{JOBS}/tracking/run_record.py": {
        "export.formats": "export.formats",
        "tracking.registeredModel": "tracking.registered_model",
        "tracking.alias": "tracking.alias",
    },
    # Rows of neither of the other sides are trained on; the sum is what makes `train` count.
    f"{PIPELINE}/config/dataset.py": {"dataset.split.train": "self.train"},
    f"{PIPELINE}/data/source.py": {
        "dataset.format": "config.format",
        "dataset.encoding": "config.encoding",
    },
    f"{PIPELINE}/data/layout.py": {
        "dataset.layout": "config.layout",
        "dataset.columns.messages": "columns.messages",
        "dataset.columns.prompt": "columns.prompt",
        "dataset.columns.completion": "columns.completion",
        "dataset.columns.instruction": "columns.instruction",
        "dataset.columns.input": "columns.input",
        "dataset.columns.response": "columns.response",
        "dataset.columns.system": "columns.system",
        "dataset.columns.text": "columns.text",
        "dataset.columns.conversationId": "columns.conversation_id",
        "dataset.columns.tools": "columns.tools",
    },
    f"{PIPELINE}/data/split.py": {
        "dataset.split.validation": "config.validation",
        "dataset.split.test": "config.test",
    },
    f"{PIPELINE}/data/survey.py": {
        "dataset.split.seed": "split.seed",
        "dataset.split.stratifyBy": "split.stratify_by",
        "dataset.split.groupBy": "split.group_by",
        "dataset.filters.deduplicate": "filters.deduplicate",
    },
    f"{PIPELINE}/data/lengths.py": {
        "dataset.filters.minTokens": "filters.min_tokens",
        "dataset.filters.maxTokens": "filters.max_tokens",
        "dataset.filters.overlength": "filters.overlength",
        "dataset.filters.minResponseTokens": "filters.min_response_tokens",
    },
    f"{PIPELINE}/data/outcome.py": {"dataset.filters.maxDropShare": "filters.max_drop_share"},
    f"{PIPELINE}/data/prepare.py": {"training.sequenceLength": "training.sequence_length"},
    f"{PIPELINE}/model/adapters.py": {
        "tuning.lora.rank": "config.rank",
        "tuning.lora.alpha": "config.alpha",
        "tuning.lora.dropout": "config.dropout",
        "tuning.lora.rankPattern": "config.rank_pattern",
        "tuning.lora.alphaPattern": "config.alpha_pattern",
        "tuning.lora.useRslora": "config.use_rslora",
        "tuning.lora.useDora": "config.use_dora",
        "tuning.lora.modulesToSave": "config.modules_to_save",
        "tuning.lora.initialization": "config.initialization",
    },
    f"{PIPELINE}/config/rank_allocation.py": {
        "tuning.lora.rankAllocation.initialRank": "self.initial_rank",
    },
    f"{PIPELINE}/training/rank_schedule.py": {
        "tuning.lora.rankAllocation.startShare": "allocation.start_share",
        "tuning.lora.rankAllocation.endShare": "allocation.end_share",
        "tuning.lora.rankAllocation.everySteps": "allocation.every_steps",
    },
    f"{PIPELINE}/training/rank_allocator.py": {
        "tuning.lora.rankAllocation.orthogonalityWeight": "rank_allocation.orthogonality_weight",
    },
    f"{PIPELINE}/model/targets.py": {"tuning.lora.targetModules": "config.target_modules"},
    f"{PIPELINE}/model/quantization.py": {
        "tuning.quantization.type": "config.type",
        "tuning.quantization.doubleQuant": "config.double_quant",
    },
    f"{PIPELINE}/model/four_bit.py": {
        "tuning.method": "tuning.method",
        "tuning.fallback": "tuning.fallback",
    },
    f"{PIPELINE}/model/loading.py": {
        "tuning.quantization.computeDtype": "quantization.compute_dtype",
        "training.gradientCheckpointing": "training.gradient_checkpointing",
    },
    f"{PIPELINE}/memory/estimate.py": {"training.microBatchSize": "training.micro_batch_size"},
    f"{PIPELINE}/config/steps.py": {
        "training.epochs": "training.epochs",
        "training.maxSteps": "training.max_steps",
        "training.warmupSteps": "training.warmup_steps",
        "training.warmupRatio": "training.warmup_ratio",
        "training.batchSize": "training.batch_size",
        "evaluation.everySteps": "evaluation.every_steps",
        "checkpoint.everySteps": "checkpoint.every_steps",
    },
    f"{PIPELINE}/training/optimizer.py": {
        "training.optimizer": "config.optimizer",
        "training.weightDecay": "config.weight_decay",
        "training.loraPlusRatio": "config.lora_plus_ratio",
        "training.maxGradNorm": "_config.max_grad_norm",
    },
    f"{PIPELINE}/training/loop.py": {
        "training.earlyStopping.restoreBest": "early_stopping.config.restore_best",
        "training.seed": "training.seed",
        "checkpoint.milestones": "checkpoint.milestones",
    },
    f"{PIPELINE}/training/held_out.py": {"training.earlyStopping.metric": "early.metric"},
    f"{PIPELINE}/training/early_stopping.py": {
        "training.earlyStopping.patience": "config.patience",
        "training.earlyStopping.minDelta": "config.min_delta",
    },
    f"{PIPELINE}/training/schedule.py": {
        "training.schedule": "config.schedule",
        "training.minLearningRate": "config.min_learning_rate",
    },
    f"{PIPELINE}/training/recovery.py": {
        "training.learningRate": "training.learning_rate",
        "training.recovery.nan": "recovery.nan",
        "training.recovery.divergence": "modes.divergence",
    },
    f"{PIPELINE}/training/sequences.py": {"training.packing": "config.packing"},
    f"{PIPELINE}/training/resume.py": {"checkpoint.acceptChanges": "checkpoint.accept_changes"},
    f"{PIPELINE}/opening.py": {
        "checkpoint.resume": "checkpoint.resume",
        "tuning.newTokens": "tuning.new_tokens",
    },
    f"{PIPELINE}/assembly.py": {
        "evaluation.schedule": "evaluation.schedule",
        "training.lossOn": "training.loss_on",
        "training.recovery.oom": "recovery.oom",
    },
    f"{PIPELINE}/run.py": {"export.verify": "export.verify"},
    f"{PIPELINE}/evaluation/compare.py": {
        "evaluation.baseline": "evaluation.baseline",
        "evaluation.metrics": "evaluation.metrics",
        "evaluation.prompts": "evaluation.prompts",
        "evaluation.numGenerations": "evaluation.num_generations",
    },
    f"{OPERATOR}/admission.py": {"output.uri": "spec.output.uri"},
    f"{OPERATOR}/reconciler.py": {
        "tracking.experiment": "spec.tracking.experiment",
        "tracking.tags": "spec.tracking.tags",
        "compute.profile": "spec.compute.profile",
    },
    f"{OPERATOR}/stored_config.py": {
        "compute.gpusPerWorker": "spec.compute.gpus_per_worker",
        "compute.ranksPerWorker": "spec.compute.ranks_per_worker",
    },
    f"{OPERATOR}/manifests.py": {
        "compute.cpus": "spec.compute.cpus",
        "compute.memory": "spec.compute.memory",
        "compute.sharedMemory": "spec.compute.shared_memory",
    },
    f"{OPERATOR}/attempts.py": {
        "retry.infrastructure": "retry.infrastructure",
        "retry.preemption": "retry.preemption",
        "retry.user": "retry.user",
        "retry.backoffSeconds": "retry.backoff_seconds",
    },
    f"{OPERATOR}/deadlines.py": {
        "deadlines.pendingSeconds": "deadlines.pending_seconds",
        "deadlines.activeSeconds": "deadlines.active_seconds",
    },
    f"{OPERATOR}/under_way.py": {"deadlines.stallSeconds": "deadlines.stall_seconds"},
    f"{OPERATOR}/between.py": {"suspend": "spec.suspend"},
    f"{OPERATOR}/closing.py": {"ttlSecondsAfterFinished": "spec.ttl_seconds_after_finished"},
}
CONSUMERS = {path: (file, read) for file, reads in FILES.items() for path, read in reads.items()}

SYNONYMS = {"compute.engine": {"Auto", "Job"}}
"""Accepted values that ask for the one thing this release does; every other one is refused."""

SMALLEST: dict[str, Any] = {"model": {"uri": "s3://m/x"}, "dataset": {"uri": "s3://d/x"}}


def spec_schema(crd: dict[str, Any]) -> dict[str, Any]:
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return dict(schema)


def leaves(schema: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field that holds no further fields; `[]` stands for the items of a list."""
    for name, field in schema["properties"].items():
        path, inner = f"{prefix}{name}", field
        if "properties" in field.get("items", {}):
            path, inner = f"{path}[]", field["items"]
        if "properties" in inner:
            yield from leaves(inner, f"{path}.")
        else:
            yield path, field


def merged(data: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    result = copy.deepcopy(data)
    *parents, last = path.split(".")
    node: Any = result
    for parent in parents:
        if parent.endswith("[]"):
            node = node[parent.removesuffix("[]")][0]
        else:
            node = node.setdefault(parent, {})
    node[last] = value
    return result


def others(field: dict[str, Any]) -> list[object]:
    """Values that are not the default."""
    if "enum" in field:
        return [value for value in field["enum"] if value != field.get("default")]
    match field["type"]:
        case "boolean":
            return [not field.get("default", False)]
        case "integer" | "number":
            low, top = field.get("minimum", 0), field.get("maximum", 1000)
            middle = (low + top) // 2 if field["type"] == "integer" else (low + top) / 2
            return [next(n for n in (middle, top, low) if n != field.get("default"))]
        case "array":
            return [[value] for value in others(field["items"])]
        case "object":
            return [{"key": value} for value in others(field["additionalProperties"])]
    return ["other"]


JOB_LEAVES = dict(leaves(spec_schema(job_crd())))


def test_the_consumers_are_those_of_real_fields() -> None:
    assert set(CONSUMERS) - set(JOB_LEAVES) == set()


@cache
def reads_of(file: str) -> frozenset[str]:
    tree = ast.parse((REPOSITORY / file).read_text(encoding="utf-8"))
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return frozenset(ast.unparse(node) for node in nodes if isinstance(node.ctx, ast.Load))


@pytest.mark.parametrize("path", JOB_LEAVES)
def test_every_field_of_a_job_is_read_or_refused(path: str) -> None:
    if path in CONSUMERS:
        file, read = CONSUMERS[path]
        found = [text for text in reads_of(file) if f".{text}".endswith(f".{read}")]
        assert found, f"{file} no longer reads {read}: refuse {path}, or name its new reader"
        return
    values = [v for v in others(JOB_LEAVES[path]) if v not in SYNONYMS.get(path, ())]
    assert values
    for value in values:
        spec = FineTuneJobSpec.parse(merged(SMALLEST, path, value))
        refused = [field.path for field in unsupported_fields(spec)]
        hit = [parent for parent in refused if f"{path}.".startswith(f"{parent}.")]
        assert hit, f"spec.{path}: {value} is neither read (see CONSUMERS) nor refused"


CHOICES = {
    "dataset.encoding",
    "dataset.format",
    "dataset.layout",
    "training.schedule",
    "evaluation.metrics",
    "evaluation.schedule",
}


@cache
def words() -> frozenset[str]:
    """Every string constant of the pipeline outside its configuration."""
    found: set[str] = set()
    for file in (REPOSITORY / PIPELINE).rglob("*.py"):
        if "config" not in file.parts:
            tree = ast.parse(file.read_text(encoding="utf-8"))
            found |= {
                node.value
                for node in ast.walk(tree)
                if isinstance(node, ast.Constant) and isinstance(node.value, str)
            }
    return frozenset(found)


@pytest.mark.parametrize("path", sorted(CHOICES))
def test_every_accepted_choice_is_known_to_the_pipeline(path: str) -> None:
    schema = JOB_LEAVES[path]
    choices = (schema.get("items") or schema)["enum"]
    for choice in choices:
        value = [choice] if "items" in schema else choice
        spec = FineTuneJobSpec.parse(merged(SMALLEST, path, value))
        assert unsupported_fields(spec) or choice in words(), f"{path}: {choice}"


PROFILE: dict[str, Any] = {
    "images": {"trainer": "trainer:1"},
    "storage": {
        "outputURI": "s3://models",
        "allowedReadURIs": ["s3://data"],
        "allowedWriteURIs": ["s3://elsewhere"],
    },
    "models": {"allowedURIs": ["hf://org"]},
    "tracking": {"uri": MLFLOW},
    "tolerations": [{"key": "gpu", "operator": "Equal", "value": "yes"}],
    "volumes": [{"claim": "data", "mountPath": "/data"}],
    "env": [{"name": "A", "value": "1"}],
}
MODEL = {"uri": "hf://org/model", "revision": "0" * 40}
WATCHERS = [
    FineTuneJobSpec.parse({"dataset": {"uri": "s3://data/x"}, "model": MODEL, **fields})
    for fields in (
        {"checkpoint": {"graceSeconds": 3000}, "deadlines": {"activeSeconds": 100}},
        {"output": {"uri": "s3://elsewhere/x"}, "compute": {"gpusPerWorker": 1}},
        {"model": {**MODEL, "revision": "main"}},
    )
]
"""Jobs that between them feel every field of a profile."""

VALUES: dict[str, object] = {
    "images.pullPolicy": "Always",
    "storage.endpoint": "https://s3.example",
    "storage.outputURI": "s3://others",
    "storage.allowedReadURIs": ["s3://others"],
    "storage.allowedWriteURIs": ["s3://others"],
    "models.allowedURIs": ["hf://others"],
    "models.hubEndpoint": "https://hub.example",
    "tracking.uri": "http://others:5000",
    "limits.activeSeconds": 50,
    "limits.graceSeconds": 300,
    "resources.cpus": "1",
    "resources.gpusPerWorker": 0,
    "resources.memory": "1Gi",
    "resources.sharedMemory": "1Gi",
    "resources.scratch": "1Gi",
    "tolerations[].operator": "Exists",
    "tolerations[].effect": "NoSchedule",
    "volumes[].mountPath": "/other",
    "env[].name": "B",
}
"""Values that the pattern of the field takes."""
TOGETHER = {"limits.gpusPerWorker": {"resources.gpusPerWorker": 0, "limits.gpusPerWorker": 0}}


def effect(data: dict[str, Any]) -> list[object]:
    """Everything that follows from a profile for the jobs."""
    profile = FineTuneProfileSpec.parse(data)
    seen_by = Profile(name="default", generation=1, spec=profile)
    found: list[object] = []
    for spec in WATCHERS:
        refused = refusal(seen(spec=spec, profile=seen_by))
        if refused is not None:
            found.append(refused)
            continue
        uri = output_uri(spec, profile, job=JOB)
        found += [
            run_config(JOB, spec=spec, profile=profile, output_uri=uri, release="r"),
            child_job(
                JOB,
                spec=spec,
                profile=profile,
                attempt=1,
                run_id="0",
                progress_url="https://progress",
                release="r",
            ),
        ]
    return found


PROFILE_LEAVES = dict(leaves(spec_schema(profile_crd())))


@pytest.mark.parametrize("path", PROFILE_LEAVES)
def test_every_field_of_a_profile_changes_something(path: str) -> None:
    before = after = PROFILE
    changes = TOGETHER.get(path)
    if changes is None:
        changes = {path: VALUES.get(path, others(PROFILE_LEAVES[path])[0])}
    for field, value in changes.items():
        after = merged(after, field, value)
        before = before if field == path else merged(before, field, value)
    assert effect(before) != effect(after), f"{path} has no effect"


def test_the_effect_is_the_same_where_nothing_changed() -> None:
    assert effect(PROFILE) == effect(copy.deepcopy(PROFILE))


def test_a_read_that_is_not_there_is_missed() -> None:
    reads = reads_of(f"{OPERATOR}/closing.py")
    assert [text for text in reads if text.endswith("spec.ttl_seconds_after_finished")]
    assert not [text for text in reads if text.endswith("spec.suspend")]
