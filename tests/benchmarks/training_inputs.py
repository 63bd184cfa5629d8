"""What the training benchmark trains: rows of Python's own source, and a model to tune on them.

Half of the rows ask for the docstring of a function, half for the function to a docstring, so that
prompts and answers are long by turns and lengths spread as widely as those of chat data. The same
interpreter writes the same rows. Both sides get the tokens and labels that our data stage made.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import random
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.data.files import DatasetFiles
from anneal_pipeline.data.prepare import PreparedData, prepare_data
from anneal_pipeline.data.prepared import PreparedSplit
from anneal_pipeline.data.tokens import generation_eos, stop_token_ids
from anneal_pipeline.model.loading import load_tokenizer
from anneal_pipeline.observer import NullObserver

MODULES = """argparse ast asyncio.locks base64 bdb calendar cmd code collections configparser
contextlib csv dataclasses datetime difflib dis doctest email.message email.utils enum fileinput
filecmp fractions ftplib functools gettext gzip html.parser http.client http.cookiejar imaplib
inspect ipaddress json.decoder locale logging logging.handlers mailbox mimetypes optparse pathlib
pickle platform plistlib poplib pprint pstats pydoc queue random sched shelve shlex shutil smtplib
socket socketserver ssl statistics string subprocess sysconfig tarfile tempfile textwrap threading
timeit tokenize traceback types typing unittest.case unittest.loader unittest.mock urllib.parse
urllib.request uuid warnings weakref wsgiref.headers xml.dom.minidom xmlrpc.client zipfile"""

SHAPES = {
    "llama-1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16},
    "llama-3b": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28},
    "llama-8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
}
"""Random models of Llama's shapes; they take the tokenizer of a real one."""


def functions() -> Iterator[tuple[str, str, str]]:
    """(name, source, docstring) of every documented function, in the order of the files."""
    for module in MODULES.split():
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            raise SystemExit(f"this Python has no source of {module}")
        text = Path(spec.origin).read_text(encoding="utf-8")
        lines = text.splitlines(keepends=True)
        for node in ast.walk(ast.parse(text)):
            doc = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None
            if isinstance(node, ast.FunctionDef) and doc:
                source = "".join(lines[node.lineno - 1 : node.end_lineno])
                yield f"{module}.{node.name}", textwrap.dedent(source), doc


def make_rows() -> list[dict[str, Any]]:
    rows = []
    for number, (name, source, doc) in enumerate(functions()):
        code = f"```python\n{source}```"
        if number % 2:
            prompt, answer = f"Write the docstring of {name}:\n\n{code}", doc
        else:
            prompt, answer = f"Write {name} to this docstring:\n\n{doc}", code
        rows.append({"prompt": prompt, "completion": answer})
    random.Random(0).shuffle(rows)
    return rows


def write_model(folder: Path, *, shape: str, tokenizer: Path) -> Path:
    """A random model, in bfloat16."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    names = AutoTokenizer.from_pretrained(tokenizer)
    heads = SHAPES[shape]["hidden_size"] // 64
    config = LlamaConfig(
        **SHAPES[shape],
        vocab_size=len(names),
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 4),
        bos_token_id=names.bos_token_id,
        eos_token_id=names.eos_token_id,
        pad_token_id=names.pad_token_id,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    names.save_pretrained(folder)
    return folder


def prepare(
    folder: Path, config: PipelineConfig, *, model: Path, num_train: int, num_held_out: int
) -> PreparedData:
    """Take as many rows as fit the sequence length, and let our data stage prepare them."""
    tokenizer = load_tokenizer(model)
    longest = config.training.sequence_length
    fitting = []
    for row in make_rows():
        text = row["prompt"] + row["completion"]
        if len(tokenizer(text).input_ids) <= longest - 48:  # room for the template
            fitting.append(row)
    if len(fitting) < num_train + num_held_out:
        raise SystemExit(f"there are {len(fitting)} rows of up to {longest} tokens; ask for fewer")
    files = {
        "train": fitting[:num_train],
        "held-out": fitting[num_train : num_train + num_held_out],
    }
    folder.mkdir(parents=True)
    for name, rows in files.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)
    return prepare_data(
        config,
        files=DatasetFiles(
            train=(folder / "train.jsonl",), validation=(folder / "held-out.jsonl",)
        ),
        folder=folder / "data",
        tokenizer=tokenizer,
        stop_ids=stop_token_ids(tokenizer, generation_eos(model)),
        observer=NullObserver(),
    )


def write_tokens(split: PreparedSplit, path: Path, *, ignored: int) -> None:
    """The rows as the other side reads them."""
    rows = []
    for index in range(len(split)):
        ids, is_response = split.row(index)
        labels = [int(i) if r else ignored for i, r in zip(ids, is_response, strict=True)]
        rows.append({"input_ids": ids.tolist(), "labels": labels})
    path.write_text(json.dumps(rows))
