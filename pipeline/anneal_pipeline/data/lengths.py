"""Rows that are too short or too long in tokens, and what the job wants done with them."""

from __future__ import annotations

from dataclasses import dataclass

from anneal_pipeline.config.dataset import FiltersConfig
from anneal_pipeline.data.conversation import Conversation
from anneal_pipeline.data.rows import BadRow
from anneal_pipeline.data.template import TemplateRefusedRowError
from anneal_pipeline.data.tokens import Tokenisation, TokenRow
from anneal_pipeline.errors import ROW_TOO_LONG, UserError

TOO_LONG = "too-long"
TOO_SHORT = "too-short"
NO_LABELS = "no-trained-token"
SHORT_RESPONSE = "short-response"
RESPONSE_CUT_OFF = "response-cut-off"
TEMPLATE_REFUSED = "template-refused"


@dataclass(kw_only=True)
class LengthFilter:
    filters: FiltersConfig
    sequence_length: int
    tokenisation: Tokenisation
    num_truncated: int = 0

    @property
    def limit(self) -> int:
        return min(self.filters.max_tokens or self.sequence_length, self.sequence_length)

    def tokens(self, conversation: Conversation) -> TokenRow | BadRow:
        """The row in tokens, cut where the job wants that; or why it is left out."""
        filters = self.filters
        try:
            row = self.tokenisation.row(conversation)
        except TemplateRefusedRowError as error:
            return conversation.left_out(TEMPLATE_REFUSED, str(error))
        num_tokens, num_trained = len(row.ids), row.num_response_tokens
        if num_tokens < filters.min_tokens:
            detail = f"has {num_tokens} tokens, fewer than minTokens {filters.min_tokens}"
            return conversation.left_out(TOO_SHORT, detail)
        if num_trained == 0:
            return conversation.left_out(NO_LABELS, "has no token to train on")
        if num_trained < filters.min_response_tokens:
            detail = f"has only {num_trained} response tokens"
            return conversation.left_out(SHORT_RESPONSE, detail)
        if num_tokens <= self.limit:
            return row
        detail = f"has {num_tokens} tokens, more than the {self.limit} allowed"
        return self._shorten(conversation, row, detail=detail)

    def _shorten(
        self, conversation: Conversation, row: TokenRow, *, detail: str
    ) -> TokenRow | BadRow:
        place = conversation.place
        match self.filters.overlength:
            case "fail":
                raise UserError(
                    ROW_TOO_LONG,
                    f"Row {place.line} of {place.file} {detail}; raise training.sequenceLength, or "
                    "set dataset.filters.overlength to drop or truncate",
                )
            case "drop":
                return conversation.left_out(TOO_LONG, detail)
        cut = row.cut(self.limit)
        if cut.num_response_tokens < self.filters.min_response_tokens:
            return conversation.left_out(
                RESPONSE_CUT_OFF, f"{detail}, and its response is cut away"
            )
        self.num_truncated += 1
        return cut
