"""What one job writes into its MLflow run beside metric points, and into the model registry."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag

from anneal_jobs.tracking.flat import flatten
from anneal_jobs.tracking.parameters import TAG_NOTE, write_parameters, write_tags
from anneal_jobs.tracking.registration import Registration, register
from anneal_jobs.tracking.summary import summary_of
from anneal_jobs.tracking.writer import Action, RunWriter
from anneal_operator.api import names
from anneal_operator.api.run_config import RunConfig
from anneal_pipeline.stages import PipelineResult

_PERPLEXITY = "responsePerplexity"
_TAG_MODEL_DIGEST = "anneal.base.digest"
_DIGEST_CHARS = 36  # MLflow's limit of a dataset digest.


class RunRecord:
    def __init__(self, config: RunConfig, *, attempt: int) -> None:
        self._config = config
        self._attempt = attempt

    def begin(self, writer: RunWriter, *, model_digest: str) -> None:
        """Queue configuration and lineage; the same again in a later attempt changes nothing."""
        data = self._config.pipeline.to_data()
        tags = {
            **self._config.tracking.tags,
            **self._lineage(),
            names.TAG_ATTEMPT: str(self._attempt),
            _TAG_MODEL_DIGEST: model_digest,
        }
        text = json.dumps(data, indent=2)

        def write(client: MlflowClient, run_id: str) -> None:
            write_parameters(client, run_id, flatten(data))
            write_tags(client, run_id, tags)
            client.log_text(run_id, text, "config.json")

        writer.submit(Action(name="configuration", write=write))

    def add_dataset(self, writer: RunWriter, *, digest: str) -> None:
        """Queue the dataset as an input of the run."""
        dataset = self._config.pipeline.dataset
        source = dataset.uri or (dataset.files.train if dataset.files else "")
        entity = Dataset(
            name=source.rstrip("/").rsplit("/", 1)[-1],
            digest=digest.removeprefix("sha256:")[:_DIGEST_CHARS],
            source_type=source.split("://", 1)[0] if "://" in source else "file",
            source=json.dumps({"uri": source}),
        )

        def write(client: MlflowClient, run_id: str) -> None:
            tag = InputTag("mlflow.data.context", "training")
            client.log_inputs(run_id, datasets=[DatasetInput(entity, [tag])])

        writer.submit(Action(name="dataset", write=write))

    def end(self, writer: RunWriter, result: PipelineResult) -> None:
        """Queue the summary, the lineage that only the end knows, and the final figures."""
        self.add_dataset(writer, digest=result.dataset_digest)
        tags = {**self._result_tags(result), TAG_NOTE: self.summary(result)}

        def write(client: MlflowClient, run_id: str) -> None:
            write_tags(client, run_id, tags)

        writer.submit(Action(name="summary", write=write))

    def register(
        self, writer: RunWriter, result: PipelineResult, *, adapter_dir: Path, model_digest: str
    ) -> str:
        """Register the adapter and return NAME/VERSION; blocks, and raises if it cannot."""
        tracking = self._config.tracking
        tags = {
            **self._lineage(),
            **self._result_tags(result),
            names.TAG_RUN_ID: writer.run_id,
            names.TAG_ATTEMPT: str(self._attempt),
            _TAG_MODEL_DIGEST: model_digest,
            **{f"anneal.metric.{k}": f"{v:.6g}" for k, v in self.final_metrics(result).items()},
        }
        registration = Registration(
            name=tracking.registered_model,
            alias=tracking.alias,
            adapter_dir=adapter_dir,
            tags=tags,
            description=self.summary(result),
            metrics=self.final_metrics(result),
            step=result.step,
        )
        return register(writer.client, writer.run_id, registration)

    def final_metrics(self, result: PipelineResult) -> dict[str, float]:
        figures = {"trainSeconds": result.train_seconds}
        if _PERPLEXITY in result.base_metrics:
            figures["basePerplexity"] = result.base_metrics[_PERPLEXITY]
        if _PERPLEXITY in result.tuned_metrics:
            figures["tunedPerplexity"] = result.tuned_metrics[_PERPLEXITY]
        return figures

    def summary(self, result: PipelineResult) -> str:
        return summary_of(self._config, result)

    def _lineage(self) -> dict[str, str]:
        job, pipeline = self._config.job, self._config.pipeline
        return {
            names.TAG_JOB_UID: job.uid,
            names.TAG_JOB_NAME: job.name,
            names.TAG_JOB_NAMESPACE: job.namespace,
            names.TAG_BASE_MODEL: pipeline.model.uri,
            names.TAG_BASE_REVISION: pipeline.model.revision or "",
            names.TAG_OUTPUT_URI: self._config.output_uri,
        }

    def _result_tags(self, result: PipelineResult) -> Mapping[str, str]:
        output = self._config.output_uri.rstrip("/")
        tags = {
            names.TAG_DATASET_DIGEST: result.dataset_digest,
            names.TAG_CONFIG_HASH: result.config_hash,
            names.TAG_ARTEFACT_DIGEST: f"sha256:{result.artefact_digest}",
        }
        folder = Path(output) / "artifacts"
        for name in self._config.pipeline.export.formats:
            tags[f"anneal.artefact.{name}.uri"] = (
                f"{output}/artifacts/{name}" if "://" in output else str(folder / name)
            )
        return tags
