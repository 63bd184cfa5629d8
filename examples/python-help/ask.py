#!/usr/bin/env python3
"""Asks the registered model: loads its adapter from MLflow, puts it on the base model, answers.

Needs no storage credentials: adapter files come through the MLflow server.
"""

import argparse
import logging
import os
import sys
import warnings
from pathlib import Path


def main() -> int:
    """Answer one question and print it."""
    options = _parser().parse_args()
    _only_the_answer()
    print(answer(options))
    return 0


def answer(options: argparse.Namespace) -> str:
    """What the registered model answers: always the likeliest next token."""
    # Some of them speak while they are imported, so not before _only_the_answer().
    import mlflow
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    # Else MLflow hands out links into its S3 server, which may be out of reach from here.
    os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "false")
    mlflow.set_tracking_uri(options.tracking)
    adapter = mlflow.artifacts.download_artifacts(options.model)
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    base = AutoModelForCausalLM.from_pretrained(options.base, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter).eval()
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": options.question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.no_grad():
        output = model.generate(**prompt, max_new_tokens=options.tokens, do_sample=False)
    answered = output[0, prompt["input_ids"].shape[1] :]
    text: str = tokenizer.decode(answered, skip_special_tokens=True)
    return text.strip()


def _only_the_answer() -> None:
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Ask the fine-tuned model a question.")
    parser.add_argument("question")
    parser.add_argument("--base", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--model", default="models:/python-help@candidate", help="%(default)s")
    parser.add_argument("--tokens", type=int, default=96, help="longest answer (%(default)s)")
    parser.add_argument(
        "--tracking",
        default=os.environ.get("MLFLOW_TRACKING_URI"),
        required="MLFLOW_TRACKING_URI" not in os.environ,
        help="MLflow server, or the database of a local run",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
