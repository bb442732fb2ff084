"""The token rows of an evaluation: every sample's answers encoded once, equal rows shared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from oblivion.data.tokens import TokenRow
from oblivion.tasks.causal_lm import CausalLM
from oblivion.types import Sample


@dataclass
class EncodedSample:
    """One sample's rows as positions in the list of all distinct rows."""

    index: int
    sample: Sample
    answer: int | None = None
    paraphrase: int | None = None
    wrong: tuple[int, ...] = ()
    prompt: tuple[int, ...] | None = None


class AnswerRows:
    """All distinct token rows of an evaluation, in order of first use.

    Attributes
    ----------
    with_moments, with_text : set of int
        Positions of the rows whose moments over the vocabulary, or whose text, some metric asks for.
    skipped : list of str
        Ids of the samples that were left out.
    """

    def __init__(self, task: CausalLM) -> None:
        self._task = task
        self._positions: dict[TokenRow, int] = {}
        self.with_moments: set[int] = set()
        self.with_text: set[int] = set()
        self.skipped: list[str] = []

    @property
    def rows(self) -> list[TokenRow]:
        """The distinct rows."""
        return list(self._positions)

    def encode(self, samples: Sequence[Sample], kinds: set[str]) -> list[EncodedSample]:
        """Encode what `kinds` asks for; a sample with a row that does not fit is skipped whole."""
        encoded = []
        for index, sample in enumerate(samples):
            one = self._encode_one(index, sample, kinds)
            if one is None:
                self.skipped.append(sample.id)
            else:
                encoded.append(one)
        return encoded

    def _encode_one(self, index: int, sample: Sample, kinds: set[str]) -> EncodedSample | None:
        answers = {"answer": [sample.answer]} if kinds & {"answer", "moments", "text", "generation"} else {}
        if "paraphrase" in kinds and sample.paraphrase:
            answers["paraphrase"] = [sample.paraphrase]
        if "wrong" in kinds:
            answers["wrong"] = list(sample.wrong_answers)
        texts = [text for kind in answers for text in answers[kind]]
        rows = self._task.encode_answers(sample, texts)
        fitting = [row for row in rows if row is not None]
        if len(fitting) < len(rows):
            return None
        places = iter([self._positions.setdefault(row, len(self._positions)) for row in fitting])
        found = {kind: list(islice(places, len(some))) for kind, some in answers.items()}
        own = found.get("answer", [])
        self.with_moments.update(own if "moments" in kinds else [])
        self.with_text.update(own if "text" in kinds else [])
        return EncodedSample(
            index,
            sample,
            answer=next(iter(own), None),
            paraphrase=next(iter(found.get("paraphrase", [])), None),
            wrong=tuple(found.get("wrong", [])),
            prompt=fitting[0].ids[: fitting[0].prompt_length] if "generation" in kinds else None,
        )
