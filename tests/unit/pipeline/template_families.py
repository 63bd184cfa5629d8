"""The chat templates of `templates/`, and what each writes around an answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.unit.pipeline.tokenizer_kinds import BLANK, KINDS, Kind

from anneal_pipeline.data.conversation import Conversation, Turn
from anneal_pipeline.data.rows import Place
from anneal_pipeline.data.template import settle_template
from anneal_pipeline.data.tokens import Tokenisation, stop_token_ids

FOLDER = Path(__file__).parent / "templates"


@dataclass(frozen=True, kw_only=True)
class Family:
    name: str
    special: tuple[str, ...]
    eos: str
    bos: str | None = "<bos>"
    stop: str | None = None
    """What ends an answer, where it is not EOS; named in the model's generation config."""
    before: str = ""
    """What is trained before an answer: a blank, or the frame of reasoning there is none of."""
    after: str = ""
    """What is trained between an answer and its end."""
    closing: str = ""
    """What is trained behind the end of the last turn of all."""
    trims: str = ""
    """The characters cut off before an answer; but for Qwen's, white space, behind it too."""
    takes_tools: bool = False
    keeps_turns: bool = True
    """False: earlier answers are rendered otherwise once the conversation goes on."""
    keeps_tools: bool = True
    """False: the tools move to the last question."""
    takes_system: bool = True

    def trained(self, answer: str, *, is_last: bool) -> str:
        """The text the loss is taken over, to the letter."""
        answer = answer.strip() if self.trims == WHITE else answer.lstrip(self.trims)
        end = self.stop or self.eos
        return f"{self.before}{answer}{self.after}{end}{self.closing if is_last else ''}"

    def template(self) -> str | None:
        path = FOLDER / f"{self.name}.jinja"
        return path.read_text(encoding="utf-8") if path.is_file() else None

    def tokenizer(self, kind: Kind) -> Any:
        """Its template is not settled yet."""
        made = kind.make(
            ["<pad>", *self.special], pad_token="<pad>", eos_token=self.eos, bos_token=self.bos
        )
        made.chat_template = self.template()
        return made


WHITE = " \t\n"


def _mark(words: str) -> str:
    """A special token as DeepSeek writes them, between full-width bars."""
    return f"<\uff5c{words.replace(' ', BLANK)}\uff5c>"


FAMILIES = [
    Family(name="chatml", special=("<|im_start|>", "<|im_end|>"), bos=None, eos="<|im_end|>"),
    Family(
        name="llama-2",
        special=("<bos>", "</s>"),
        eos="</s>",
        before=" ",
        after=" ",
        trims=WHITE,
    ),
    Family(
        name="llama-3",
        special=("<bos>", "<eos>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
        eos="<eos>",
        stop="<|eot_id|>",
        trims=WHITE,
        takes_tools=True,
    ),
    Family(
        name="mistral",
        special=("<bos>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]"),
        eos="</s>",
        before=" ",
        trims=WHITE,
        takes_tools=True,
        keeps_tools=False,
        takes_system=False,
    ),
    Family(
        name="gemma",
        special=("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        eos="<eos>",
        stop="<end_of_turn>",
        trims=WHITE,
        takes_system=False,
    ),
    Family(
        name="gemma-tools",
        special=(
            "<bos>",
            "<eos>",
            "<start_of_turn>",
            "<end_of_turn>",
            "<start_function_call>",
            "<end_function_call>",
        ),
        eos="<eos>",
        stop="<end_of_turn>",
        trims=WHITE,
        takes_tools=True,
    ),
    Family(
        name="phi-3",
        special=("<|end|>", "<|endoftext|>", "<|user|>", "<|assistant|>"),
        bos=None,
        eos="<|endoftext|>",
        stop="<|end|>",
        closing="\n<|endoftext|>",
    ),
    Family(
        name="qwen-thinking",
        special=("<|im_start|>", "<|im_end|>"),
        bos=None,
        eos="<|im_end|>",
        before="<think>\n\n</think>\n\n",
        trims="\n",
        takes_tools=True,
        keeps_turns=False,
    ),
    Family(name="zephyr", special=("<bos>", "</s>"), eos="</s>"),
    Family(
        name="deepseek",
        special=(
            _mark("begin of sentence"),
            _mark("end of sentence"),
            _mark("User"),
            _mark("Assistant"),
            _mark("tool calls begin"),
            _mark("tool calls end"),
            _mark("tool call begin"),
            _mark("tool call end"),
            _mark("tool sep"),
            _mark("tool outputs begin"),
            _mark("tool outputs end"),
            _mark("tool output begin"),
            _mark("tool output end"),
        ),
        eos=_mark("end of sentence"),
        bos=_mark("begin of sentence"),
        takes_tools=True,
    ),
    Family(name="none", special=("<bos>", "</s>"), eos="</s>"),
]
KEEPING = [family for family in FAMILIES if family.keeps_turns]
WITH_TOOLS = [family for family in FAMILIES if family.takes_tools]


def families(among: list[Family]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("family", [pytest.param(f, id=f.name) for f in among])


def conversation(*contents: str, system: str | None = None) -> Conversation:
    turns = [Turn(("user", "assistant")[i % 2], content) for i, content in enumerate(contents)]
    if system is not None:
        turns.insert(0, Turn("system", system))
    return Conversation(place=Place(file="rows.jsonl", line=3), turns=tuple(turns))


def trained_spans(tokenisation: Tokenisation, row: Conversation) -> list[list[int]]:
    """The runs of trained tokens of a row."""
    tokens = tokenisation.row(row)
    spans: list[list[int]] = []
    previous = 0
    for token, is_response in zip(tokens.ids, tokens.is_response, strict=True):
        if is_response and not previous:
            spans.append([])
        if is_response:
            spans[-1].append(token)
        previous = is_response
    return spans


def settled(family: Family, kind: Kind) -> Tokenisation:
    tokenizer = family.tokenizer(kind)
    settle_template(tokenizer)
    stop = None if family.stop is None else tokenizer.convert_tokens_to_ids(family.stop)
    return Tokenisation(tokenizer, stop_ids=stop_token_ids(tokenizer, stop))


@pytest.fixture(scope="module")
def made() -> dict[str, Tokenisation]:
    """Of byte-level tokenizers, by family, their templates settled."""
    return {family.name: settled(family, KINDS[0]) for family in FAMILIES}
