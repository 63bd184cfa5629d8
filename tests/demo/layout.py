"""Folders and fixed names of the demo."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CLUSTER_PROGRAM = REPOSITORY / "tests/cluster/cluster.py"
CHARTS = REPOSITORY / "charts"
EXAMPLE = REPOSITORY / "examples/python-help"
JOB_FILE = EXAMPLE / "finetune-job.yaml"
RESULT_FILE = REPOSITORY / "build/demo/result.json"
ANNEAL = REPOSITORY / ".venv/bin/anneal"

CACHE = Path(os.environ.get("ANNEAL_CACHE") or Path.home() / ".cache/anneal").absolute()
STATE = (
    Path(os.environ.get("ANNEAL_STATE") or Path.home() / ".local/state/anneal").absolute()
    / "cluster"
)
MODEL_FOLDER = CACHE / "models/smollm2-135m-instruct"

OPERATOR_NAMESPACE = "anneal-system"
SERVICES_NAMESPACE = "anneal-dev"
JOB_NAMESPACE = "anneal-demo"

BUCKET = "anneal"
STORAGE_SECRET = "anneal-storage"
