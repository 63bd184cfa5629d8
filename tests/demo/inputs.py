"""What the job reads: a real base model and real data, made on this machine and uploaded."""

import shutil
import sys

import execution
from layout import ANNEAL, EXAMPLE, MODEL_FOLDER, REPOSITORY
from storage import Storage

DATASET_FILE = REPOSITORY / "build/demo/python-help.jsonl"
DATASET_KEY = "datasets/python-help.jsonl"
MODEL_KEY = "models/smollm2-135m-instruct"


def import_model() -> bool:
    """Make the base model's folder once for this user; return whether it had to be made."""
    if MODEL_FOLDER.is_dir():
        return False
    part = MODEL_FOLDER.with_name(f".{MODEL_FOLDER.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.parent.mkdir(parents=True, exist_ok=True)
    execution.run([ANNEAL, "models", "import", "smollm2", "--output", part])
    part.rename(MODEL_FOLDER)
    return True


def build_dataset() -> None:
    """Write the example's rows; an unchanged file is left alone, so that it is not sent again."""
    part = DATASET_FILE.with_suffix(".part")
    execution.run([sys.executable, EXAMPLE / "build_dataset.py", "--output", part])
    if DATASET_FILE.exists() and DATASET_FILE.read_bytes() == part.read_bytes():
        part.unlink()
    else:
        part.replace(DATASET_FILE)


def upload_inputs(storage: Storage) -> int:
    """Put model and data where the job looks for them; return how many files were sent."""
    files = {DATASET_KEY: DATASET_FILE} | {
        f"{MODEL_KEY}/{path.relative_to(MODEL_FOLDER).as_posix()}": path
        for path in sorted(MODEL_FOLDER.rglob("*"))
        if path.is_file()
    }
    return sum(storage.upload(path, key=key) for key, path in files.items())
