#!/usr/bin/env python3
"""Builds question-and-answer rows from the docstrings of Python's own standard library.

One row per public class, function, method and property: a question about it, and the first
paragraph of its docstring as the answer, in the `messages` layout. Needs nothing but Python; the
same interpreter writes the same bytes every time (another version words some docstrings otherwise).

The docstrings are part of Python and under the PSF licence, version 2; see README.md.
"""

import argparse
import hashlib
import importlib
import inspect
import json
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

# Platform-independent modules that do nothing on import. One that this interpreter lacks (a
# distribution may package it apart, a later version may drop it) is left out.
_MODULE_NAMES = """
abc argparse array ast asyncio asyncio.events asyncio.locks asyncio.queues asyncio.streams
asyncio.subprocess asyncio.tasks asyncio.transports atexit base64 bdb binascii bisect builtins bz2
calendar cmath cmd code codecs codeop collections collections.abc compileall concurrent.futures
concurrent.futures.thread configparser contextlib contextvars copy copyreg csv ctypes dataclasses
datetime decimal difflib dis doctest email.charset email.generator email.header email.headerregistry
email.message email.parser email.policy email.utils enum errno faulthandler filecmp fileinput
fnmatch fractions ftplib functools gc genericpath getopt getpass gettext glob graphlib gzip hashlib
heapq hmac html html.parser http http.client http.cookiejar http.cookies http.server imaplib
importlib importlib.abc importlib.machinery importlib.metadata importlib.util inspect io ipaddress
itertools json json.decoder json.encoder keyword linecache locale logging logging.config
logging.handlers lzma mailbox marshal math mimetypes mmap multiprocessing.connection
multiprocessing.managers multiprocessing.pool multiprocessing.process multiprocessing.shared_memory
numbers operator optparse os pathlib pickle pickletools pkgutil platform plistlib poplib posixpath
pprint profile pstats py_compile pyclbr pydoc queue quopri random re reprlib runpy sched secrets
select selectors shelve shlex shutil signal site smtplib socket socketserver sqlite3 ssl stat
statistics string struct subprocess symtable sys sysconfig tabnanny tarfile tempfile textwrap
threading time timeit tokenize tomllib trace traceback tracemalloc types typing unicodedata
unittest.case unittest.loader unittest.mock unittest.result unittest.runner unittest.suite
urllib.error urllib.parse urllib.request urllib.response urllib.robotparser uuid venv warnings wave
weakref webbrowser wsgiref.handlers wsgiref.headers wsgiref.simple_server wsgiref.util
xml.dom.minidom xml.etree.ElementTree xml.sax.handler xml.sax.saxutils xml.sax.xmlreader
xmlrpc.client xmlrpc.server zipapp zipfile zipimport zlib zoneinfo
"""
MODULES = tuple(_MODULE_NAMES.split())

# finetune-job.yaml asks about these to compare base and tuned, so nobody may have seen the answers.
HELD_BACK = frozenset({"shutil.copytree", "textwrap.shorten", "random.shuffle"})

QUESTIONS = (
    "What does `{name}` do in Python?",
    "In Python, what is `{name}` for?",
    "Explain Python's `{name}` in one or two sentences.",
)

WORDS_MIN = 4
"""A shorter answer says nothing beyond the name ("Return value.")."""
WORDS_MAX = 60
"""Keeps every row well within a sequence of 256 tokens."""

SIGNATURE = re.compile(r"^[\w.]+\(.*\)\s*(->|=>|--|:|$)")
"""The call signature that docstrings of C functions begin with."""


def main() -> int:
    """Write the rows and say how many there are."""
    options = _parser().parse_args()
    rows = build_rows(num_rows=options.rows)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    options.output.write_text(text, encoding="utf-8")
    print(f"{len(rows)} rows in {options.output}")
    if len(rows) < options.rows:
        print(f"this Python has no more than {len(rows)} docstrings that fit", file=sys.stderr)
    return 0


def build_rows(*, num_rows: int) -> list[dict[str, object]]:
    """Return at most that many rows; a smaller set is the beginning of every larger one."""
    answers = sorted(_distinct_answers().items(), key=lambda item: _digest(item[0]))
    return [_row(name, answer) for name, answer in answers[:num_rows]]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Build question-and-answer rows about Python.")
    parser.add_argument(
        "--rows", type=_positive, default=900, help="rows to write (default: %(default)s)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("build/python-help.jsonl"),
        help="JSONL file to write (default: %(default)s)",
    )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a number of rows of at least 1, got {number}")
    return number


def _distinct_answers() -> dict[str, str]:
    """Map names to answers. Of several names with one answer (methods that a class repeats) the
    first stays, so that no answer of a held-out row is ever trained on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        answers = {name: _answer(thing) for name, thing in _documented_things()}
    found: dict[str, str] = {}
    # Names held back come first, so that an alias (random.Random.shuffle) goes with them.
    for name in sorted(answers, key=lambda name: (name not in HELD_BACK, name)):
        answer = answers[name]
        if answer is not None and answer not in found.values():
            found[name] = answer
    return {name: answer for name, answer in found.items() if name not in HELD_BACK}


def _documented_things() -> Iterator[tuple[str, object]]:
    for module_name in MODULES:
        try:
            module = importlib.import_module(module_name)
        except ImportError:
            continue
        for name, thing in vars(module).items():
            if name.startswith("_") or getattr(thing, "__module__", None) != module_name:
                continue
            full_name = name if module_name == "builtins" else f"{module_name}.{name}"
            if inspect.isclass(thing):
                yield full_name, thing
                yield from _members(full_name, thing)
            elif inspect.isroutine(thing):
                yield full_name, thing


def _members(class_name: str, owner: type) -> Iterator[tuple[str, object]]:
    for name, member in vars(owner).items():
        if name.startswith("_"):
            continue
        if inspect.isroutine(member) or isinstance(member, property):
            yield f"{class_name}.{name}", member


def _answer(thing: object) -> str | None:
    """Return the docstring's first paragraph without signatures, or None if it is not prose."""
    doc = getattr(thing, "__doc__", None)
    if not isinstance(doc, str):
        return None
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(doc)):
        lines = [line.strip() for line in paragraph.splitlines()]
        text = " ".join(line for line in lines if not SIGNATURE.match(line))
        if text:
            return text if _is_prose(text) else None
    return None


def _is_prose(text: str) -> bool:
    """Whether the text reads as one or more sentences: no table, no doctest, no type alias."""
    if not WORDS_MIN <= len(text.split()) <= WORDS_MAX or ">>>" in text or "  " in text:
        return False
    return text[0].isupper() and text[-1] == "." and text.isascii()


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _row(name: str, answer: str) -> dict[str, object]:
    question = QUESTIONS[int(_digest(name)[:8], 16) % len(QUESTIONS)].format(name=name)
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }


if __name__ == "__main__":
    sys.exit(main())
