"""Encode the samples of an evaluation as token rows; equal rows are kept once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

from oblivion.data.tokens import TokenRow
from oblivion.tasks.causal_lm import CausalLM
from oblivion.types import Sample

Prompt = tuple[int, ...]


@dataclass
class EncodedSample:
    """A sample whose rows are positions in the list of all distinct rows, and whose prompts are token ids."""

    index: int
    sample: Sample
    answer: int | None = None
    paraphrase: int | None = None
    wrong: tuple[int, ...] = ()
    prompt: Prompt | None = None
    prompts: tuple[Prompt, ...] = ()
    target: str = ""


class AnswerRows:
    """All distinct token rows of an evaluation, in order of first use.

    Attributes
    ----------
    with_moments, with_text : set of int
        Positions of the rows whose moments over the vocabulary, or whose text, some metric asks for.
    skipped : list of str
        Ids of the samples that were left out.
    """

    def __init__(self) -> None:
        self._positions: dict[TokenRow, int] = {}
        self.with_moments: set[int] = set()
        self.with_text: set[int] = set()
        self.skipped: list[str] = []

    @property
    def rows(self) -> list[TokenRow]:
        """Return the distinct rows."""
        return list(self._positions)

    def encode(self, samples: Sequence[Sample], kinds: set[str], task: CausalLM, cut: int = 0) -> list[EncodedSample]:
        """Encode what `kinds` asks for; a sample with a row that does not fit into the context is skipped as a whole.

        With `cut`, the target of a sample is only the text of so many tokens of its answer.
        """
        encoded = []
        for index, sample in enumerate(samples):
            one = self._encode_one(index, sample, kinds, task, cut)
            if one is None:
                self.skipped.append(sample.id)
            else:
                encoded.append(one)
        return encoded

    def _encode_one(
        self, index: int, sample: Sample, kinds: set[str], task: CausalLM, cut: int
    ) -> EncodedSample | None:
        answers = {"answer": [sample.answer]} if kinds - {"paraphrase", "wrong"} else {}
        if "paraphrase" in kinds and sample.paraphrase:
            answers["paraphrase"] = [sample.paraphrase]
        if "wrong" in kinds:
            answers["wrong"] = list(sample.wrong_answers)
        texts = [text for kind in answers for text in answers[kind]]
        asked = sample.extras.get("prompts", ()) if "generations" in kinds else ()
        rows = task.encode_answers(sample, texts)
        others = [task.encode(replace(sample, prompt=question)) for question in asked]
        fitting, prompted = ([row for row in some if row is not None] for some in (rows, others))
        if len(fitting) < len(rows) or len(prompted) < len(others):
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
            prompts=tuple(row.ids[: row.prompt_length] for row in prompted),
            target=_text(task, fitting[0].labels[:cut]) if cut and own else sample.answer,
        )


def _text(task: CausalLM, ids: Sequence[int]) -> str:
    text: str = task.tokenizer.decode(ids, skip_special_tokens=True)
    return text
