"""S3 and MLflow as the tests see them: from outside the cluster, at ports of the node."""

import base64
import configparser
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from harness import tiny_model
from harness.cluster import Cluster
from harness.installation import (
    BUCKET,
    JOBS,
    MLFLOW_ADDRESS,
    S3_ADDRESS,
    SERVICES,
    STORAGE_SECRET,
    WRONG_SECRET,
)
from mlflow.tracking import MlflowClient

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MODEL_URI = f"s3://{BUCKET}/models/tiny"
PICKLED_MODEL_URI = f"s3://{BUCKET}/models/pickled"
DATASET_URI = f"s3://{BUCKET}/data/rows.jsonl"
ABSENT_DATASET_URI = f"s3://{BUCKET}/data/absent.jsonl"
EMPTY_DATASET_URI = f"s3://{BUCKET}/data/empty.jsonl"
UNANSWERED_DATASET_URI = f"s3://{BUCKET}/data/unanswered.jsonl"


def s3_client(cluster: Cluster) -> "S3Client":
    secret = cluster.get("secret", STORAGE_SECRET, namespace=SERVICES)
    parser = configparser.ConfigParser()
    parser.read_string(base64.b64decode(secret["data"]["credentials"]).decode())
    return boto3.client(
        "s3", endpoint_url=S3_ADDRESS, region_name="us-east-1", **dict(parser["default"])
    )


def mlflow_client() -> MlflowClient:
    return MlflowClient(tracking_uri=MLFLOW_ADDRESS, registry_uri=MLFLOW_ADDRESS)


def fill(s3: "S3Client", *, folder: Path) -> Path:
    """Upload the tiny model and the data sets, good and bad; return the model's local folder."""
    model = tiny_model.write_model(folder / "tiny")
    for path in model.iterdir():
        s3.upload_file(str(path), BUCKET, f"models/tiny/{path.name}")
        name = "pytorch_model.bin" if path.suffix == ".safetensors" else path.name
        s3.upload_file(str(path), BUCKET, f"models/pickled/{name}")
    s3.upload_file(str(tiny_model.write_rows(folder / "rows.jsonl")), BUCKET, "data/rows.jsonl")
    s3.put_object(Bucket=BUCKET, Key="data/empty.jsonl", Body=b"")
    unanswered = b'{"messages": [{"role": "user", "content": "Who wrote Hamlet?"}]}\n' * 20
    s3.put_object(Bucket=BUCKET, Key="data/unanswered.jsonl", Body=unanswered)
    return model


def wrong_secret() -> dict[str, object]:
    """A storage Secret whose key the S3 server knows and whose secret it does not."""
    credentials = "[default]\naws_access_key_id = nobody\naws_secret_access_key = wrong\n"
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": WRONG_SECRET, "namespace": JOBS},
        "stringData": {"credentials": credentials},
    }
