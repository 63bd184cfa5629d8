"""Tiny tokenizers of every kind that the model families have, trained on a few lines.

They differ in what a text goes through before it is cut up: nothing (byte-level BPE), a mark for
blanks with or without one in front of every piece (SentencePiece's ways), Unicode normalisation,
special tokens that take the blanks behind them. Unknown characters become several bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "What is the colour of the sky? It is blue. user assistant system answer question 42",
    'weather city days name arguments parameters {"name": "weather", "arguments": {"x": true}}',
]
UNKNOWN = "<unk>"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
BLANK = "\N{LOWER ONE EIGHTH BLOCK}"


@dataclass(frozen=True, kw_only=True)
class Kind:
    name: str
    normalizer: normalizers.Normalizer | None = None
    pre_tokenizer: pre_tokenizers.PreTokenizer | None = None
    is_unigram: bool = False
    is_byte_level: bool = False
    prepends: bool = False
    """A blank before the text, and before each piece behind a special token."""
    takes_blanks: bool = False
    """Special tokens take the blanks behind them, as those of Phi-3 do."""

    def make(self, special: Sequence[str], **names: str | None) -> PreTrainedTokenizerFast:
        tokenizer = self._bytes(special) if self.is_byte_level else self._pieces(special)
        tokenizer.add_special_tokens(
            [AddedToken(token, special=True, rstrip=self.takes_blanks) for token in special]
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **names
        )

    def reads(self, text: str, special: Sequence[str]) -> str:
        """What the tokenizer makes of a text before it cuts it up; blanks as blanks."""
        marks = "|".join(re.escape(token) for token in sorted(special, key=len, reverse=True))
        pieces = re.split(f"({marks})", text)
        return "".join(
            piece if number % 2 else self._read(piece, behind_special=number > 0)
            for number, piece in enumerate(pieces)
        )

    def _read(self, piece: str, *, behind_special: bool) -> str:
        if self.takes_blanks and behind_special:
            piece = piece.lstrip()
        if self.normalizer is not None:
            piece = self.normalizer.normalize_str(piece).replace(BLANK, " ")
        has_blank = self.is_unigram and piece.startswith(" ")
        return f" {piece}" if self.prepends and piece and not has_blank else piece

    def _bytes(self, special: Sequence[str]) -> Tokenizer:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=340,
            special_tokens=list(special),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(CORPUS, trainer)
        return tokenizer

    def _pieces(self, special: Sequence[str]) -> Tokenizer:
        tokenizer = Tokenizer(models.Unigram() if self.is_unigram else models.BPE())
        normalizer = [self.normalizer] if self.normalizer is not None else []
        if self.prepends and self.pre_tokenizer is None:
            normalizer.insert(0, normalizers.Prepend(BLANK))
        if normalizer:
            tokenizer.normalizer = normalizers.Sequence(normalizer)
        if self.pre_tokenizer is not None:
            tokenizer.pre_tokenizer = self.pre_tokenizer
        if self.is_unigram:
            trainer = trainers.UnigramTrainer(
                vocab_size=120,
                special_tokens=[UNKNOWN, *special],
                unk_token=UNKNOWN,
                show_progress=False,
            )
        else:
            trainer = trainers.BpeTrainer(
                vocab_size=420,
                special_tokens=[UNKNOWN, *special],
                initial_alphabet=[BLANK],
                show_progress=False,
            )
        tokenizer.train_from_iterator(CORPUS, trainer)
        return _with_bytes(tokenizer)


def _with_bytes(tokenizer: Tokenizer) -> Tokenizer:
    """Its trainers know no byte fallback: put the bytes behind what was learnt."""
    written = json.loads(tokenizer.to_str())
    model = written["model"]
    model["byte_fallback"] = True
    if model["type"] == "Unigram":
        model["vocab"] += [[byte, -20.0] for byte in BYTES]
    else:
        size = len(model["vocab"])
        model |= {"unk_token": UNKNOWN, "fuse_unk": True}
        model["vocab"] |= {byte: size + number for number, byte in enumerate(BYTES)}
    made = Tokenizer.from_str(json.dumps(written))
    made.decoder = decoders.Sequence(
        [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return made


def add_bos(tokenizer: PreTrainedTokenizerFast) -> None:
    """As `add_bos_token` does: every text gets one in front, unless told otherwise."""
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{tokenizer.bos_token} $A",
        special_tokens=[(str(tokenizer.bos_token), int(tokenizer.bos_token_id))],
    )


_TO_MARKS = normalizers.Replace(" ", BLANK)
KINDS = [
    Kind(name="byte-level", is_byte_level=True),
    Kind(name="llama-2", normalizer=_TO_MARKS, prepends=True),
    Kind(
        name="mistral",
        pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first", split=False),
    ),
    Kind(
        name="gemma",
        normalizer=_TO_MARKS,
        pre_tokenizer=pre_tokenizers.Split(" ", "merged_with_previous"),
    ),
    Kind(name="phi-3", normalizer=_TO_MARKS, prepends=True, takes_blanks=True),
    Kind(
        name="unigram",
        normalizer=normalizers.Sequence(
            [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " "), _TO_MARKS]
        ),
        pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="always"),
        is_unigram=True,
        prepends=True,
    ),
]
