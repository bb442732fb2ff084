"""Causal language models: a question and its answer become token ids, of which the answer's are labels."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from oblivion.data.templates.plain import PlainTemplate
from oblivion.data.tokens import Template, TokenRow, encode_answers, encode_prompt
from oblivion.errors import InputError
from oblivion.objectives.terms import Answers
from oblivion.tasks.forward import HIDDEN, outputs_at
from oblivion.tasks.refusals import refusal_to
from oblivion.types import Sample

if TYPE_CHECKING:
    from torch import Tensor

_NO_LIMIT = 1 << 30


@dataclass(frozen=True)
class TextBatch:
    """Padded token rows, and where their labels are predicted from.

    Attributes
    ----------
    ids : Tensor (B, L) int64
        Token ids, padded on the right, where a causal model never looks.
    positions : Tensor (T,) int64
        Position from which each label is predicted (label position - 1).
    answers : Answers
        The T labels and their rows.
    size : int
        Tokens without padding.
    mask : Tensor (B, 1, L, L), optional
        What is added to the attention scores; by default every token sees those before it.
    places : Tensor (B, L) int64, optional
        Position ids; by default 0, 1, 2, ...
    """

    ids: Tensor
    positions: Tensor
    answers: Answers
    size: int
    mask: Tensor | None = None
    places: Tensor | None = None


@dataclass(frozen=True)
class CausalLM:
    """The task of a causal language model.

    Parameters
    ----------
    tokenizer : transformers tokenizer
        With EOS and padding tokens.
    max_length : int
        The most tokens of a row.
    template : Template
        How a question and an answer become text.
    """

    tokenizer: Any
    max_length: int
    template: Template = field(default_factory=PlainTemplate)

    def check(self) -> None:
        """Refuse a template that does not go with the tokenizer.

        Raises
        ------
        InputError
            As `oblivion.data.tokens.encode_answers` does.
        """
        encode_prompt(self.tokenizer, self.template, "?")

    def size(self, sample: Sample) -> int:
        """Return the number of tokens of the sample's row, however many the model can take."""
        row = replace(self, max_length=_NO_LIMIT).encode(sample)
        assert row is not None
        return row.size

    def encode(self, sample: Sample) -> TokenRow | None:
        """Encode the question with the answer; None if the row is longer than `max_length`."""
        return self.encode_answers(sample, (sample.answer,))[0]

    def alternate(self, sample: Sample) -> TokenRow | None:
        """Encode the sample's question with its alternate answer, or with a refusal where it has none of its own."""
        answer = str(sample.extras.get("alternate") or "") or refusal_to(sample.prompt)
        return self.encode_answers(sample, (answer,))[0]

    def encode_answers(self, sample: Sample, answers: Sequence[str]) -> list[TokenRow | None]:
        """Encode the sample's question with each of some answers; see `oblivion.data.tokens.encode_answers`."""
        try:
            return encode_answers(self.tokenizer, self.template, sample.prompt, answers, self.max_length)
        except InputError as error:
            raise InputError(f"{sample.id}: {error}") from None

    def collate(self, rows: Sequence[TokenRow], device: Any = "cpu") -> TextBatch:
        """Pad rows to the longest of them."""
        return collate(rows, self.tokenizer.pad_token_id, device)

    def blank(self, row: TokenRow) -> TokenRow:
        """Return one token without a label.

        It is not padding, whose embedding is zero in some models, where a norm has no gradient.
        """
        return TokenRow(row.ids[:1], 1)

    def kinds(self, model: Any) -> tuple[str, ...]:
        """Return the logits and the hidden states of the model's blocks."""
        blocks = int(getattr(model.config.get_text_config(), "num_hidden_layers", 0))
        return ("logits", *(f"{HIDDEN}{block}" for block in range(blocks + 1)))

    def forward(self, model: Any, batch: TextBatch, wants: Collection[str]) -> dict[str, Tensor]:
        """Run the model once and make the outputs in `wants` at the positions that labels are predicted from.

        Parameters
        ----------
        model : transformers or peft model
            Any causal LM.
        batch : TextBatch
            The rows.
        wants : collection of str
            ``"logits"``, (T, V); ``"hidden:<n>"``, (T, d), the hidden state after block n, where 0 is the embedding and
            the last one is what the head reads. All are in at least fp32.
        """
        return outputs_at(model, batch.ids, batch.answers.rows, batch.positions, wants, batch.mask, batch.places)


def collate(rows: Sequence[TokenRow], pad_id: int, device: Any = "cpu") -> TextBatch:
    """Pad rows to the longest of them."""
    import torch

    length = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), length), pad_id)
    positions: list[int] = []
    labels: list[int] = []
    owners: list[int] = []
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = torch.tensor(row.ids)
        positions += range(row.prompt_length - 1, len(row.ids) - 1)
        labels += row.labels
        owners += [index] * len(row.labels)
    answers = Answers(torch.tensor(labels, device=device), torch.tensor(owners, device=device), len(rows))
    size = sum(len(row.ids) for row in rows)
    return TextBatch(ids.to(device), torch.tensor(positions, device=device), answers, size)
