"""Run a model on the rows of an evaluation: every answer is scored once, and every prompt continued once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from oblivion.data.templates import templates
from oblivion.errors import ConfigError
from oblivion.metrics.engine.context import AnswerScore, ScoredRow
from oblivion.metrics.engine.encoding import AnswerRows, EncodedSample, Prompt
from oblivion.metrics.engine.generation import generate
from oblivion.metrics.engine.scoring import score_rows
from oblivion.metrics.engine.suite import Format, Groups
from oblivion.metrics.rouge import start_rouge
from oblivion.tasks.causal_lm import CausalLM

_TOKENS_PER_ROW = 128
Texts = Mapping[str, Mapping[str, Mapping[str, str]]]
"""Group to row position (as text) to ``input``, ``ground_truth`` and ``generation``."""


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """The outputs of a pass.

    Attributes
    ----------
    rows : mapping of str to sequence of ScoredRow
        Group to the outputs on its rows.
    skipped : tuple of str
        Ids of samples that entered nothing.
    texts : mapping
        See `Texts`.
    """

    rows: Mapping[str, Sequence[ScoredRow]]
    skipped: tuple[str, ...]
    texts: Texts


@dataclass(frozen=True)
class _Asked:
    """A prompt, and how far it has to be continued."""

    prompt: Prompt
    limit: int
    stops: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TextPass:
    """One pass of a model over rows, and its sizes.

    Attributes
    ----------
    model : transformers or peft model
        Any causal LM; merging its adapter first makes the pass faster.
    task : CausalLM
        Its tokenizer, template and context; a sample with a row longer than the context is skipped and named.
    formats : mapping of str to Format
        Group to how its rows are asked, where that is not with the task's template.
    max_new_tokens : int
        The most tokens of a generated answer.
    batch_size : int
        The number of answers that are generated together; scoring takes 128 tokens for each of them, and on a CPU at
        most 1,024.

    Raises
    ------
    ConfigError
        If a size is not positive.
    """

    model: Any
    task: CausalLM
    formats: Mapping[str, Format]
    max_new_tokens: int
    batch_size: int

    def __post_init__(self) -> None:
        sizes = {"batch_size": self.batch_size, "max_new_tokens": self.max_new_tokens}
        for name, size in {**sizes, "max_length": self.task.max_length}.items():
            if size < 1:
                raise ConfigError(f"{name} = {size}: expected at least 1")

    def over(self, groups: Groups, wanted: Mapping[str, set[str]]) -> Outputs:
        """Encode the rows of the wanted groups, continue their prompts, and score their answers.

        Parameters
        ----------
        groups : mapping of str to sequence of Sample
            Group to its rows.
        wanted : mapping of str to set of str
            Group to the kinds of outputs that are needed on its rows.

        Raises
        ------
        InputError
            If the model's outputs are not finite, or a row cannot be encoded.
        """
        rows = AnswerRows()
        encoded = {
            group: rows.encode(samples, wanted[group], self._task(group), self._cut(group))
            for group, samples in groups.items()
            if group in wanted
        }
        prompted = [(group, one) for group, ones in encoded.items() for one in ones if one.prompt is not None]
        with evaluating(self.model):
            written = self._write(encoded, {row.ids[-1] for row in rows.rows})
            pairs = [(one.target, written[self._asked(group, one.prompt or ())]) for group, one in prompted]
            pending = start_rouge(pairs)
            scores = self._score(rows)
        texts = {id(one): text for (_, one), (_, text) in zip(prompted, pairs, strict=True)}
        agreement = {id(one): found for (_, one), found in zip(prompted, pending(), strict=True)}
        scored = {
            group: [
                _scored_row(
                    one,
                    scores,
                    generation=texts.get(id(one)),
                    rouge=agreement.get(id(one)),
                    generations=tuple(written[self._asked(group, prompt)] for prompt in one.prompts),
                )
                for one in ones
            ]
            for group, ones in encoded.items()
        }
        shown = {group: self._shown(group, ones, scored[group]) for group, ones in encoded.items()}
        return Outputs(rows=scored, skipped=tuple(rows.skipped), texts=shown)

    def _format(self, group: str) -> Format:
        return self.formats.get(group, Format())

    def _task(self, group: str) -> CausalLM:
        name = self._format(group).template
        return replace(self.task, template=templates.get(name)()) if name else self.task

    def _limit(self, group: str) -> int:
        return min(self.max_new_tokens, self._format(group).max_new_tokens or self.max_new_tokens)

    def _cut(self, group: str) -> int:
        return self._limit(group) if self._format(group).cut else 0

    def _asked(self, group: str, prompt: Prompt) -> _Asked:
        return _Asked(prompt, self._limit(group), self._format(group).stops)

    def _write(self, encoded: Mapping[str, Sequence[EncodedSample]], ends: set[int]) -> dict[_Asked, str]:
        """Continue every prompt; those that are continued equally far go through the model together."""
        by_kind: dict[tuple[int, tuple[str, ...]], list[_Asked]] = {}
        for group, ones in encoded.items():
            for one in ones:
                for prompt in (*([one.prompt] if one.prompt is not None else []), *one.prompts):
                    asked = self._asked(group, prompt)
                    by_kind.setdefault((asked.limit, asked.stops), []).append(asked)
        written: dict[_Asked, str] = {}
        for (limit, stops), some in by_kind.items():
            texts = generate(
                self.model,
                self.task.tokenizer,
                [asked.prompt for asked in some],
                max_new_tokens=limit,
                max_length=self.task.max_length,
                batch_size=self.batch_size,
                ends=ends,
                before=stops,
            )
            written.update(zip(some, texts, strict=True))
        return written

    def _score(self, rows: AnswerRows) -> list[AnswerScore]:
        """Score all distinct rows, and add the texts of those for which some metric needs it."""
        distinct = rows.rows
        scores = score_rows(
            self.model,
            distinct,
            pad_id=self.task.tokenizer.pad_token_id,
            max_tokens=self.batch_size * _TOKENS_PER_ROW,
            moments=rows.with_moments,
        )
        for index in rows.with_text:
            text = self.task.tokenizer.decode(distinct[index].labels, skip_special_tokens=True)
            scores[index] = replace(scores[index], text=text)
        return scores

    def _shown(
        self, group: str, ones: Iterable[EncodedSample], scored: Iterable[ScoredRow]
    ) -> dict[str, dict[str, str]]:
        task = self._task(group)
        return {
            str(one.index): {
                "input": task.template.prompt(task.tokenizer, one.sample.prompt),
                "ground_truth": one.target,
                "generation": row.outputs["generation"],
            }
            for one, row in zip(ones, scored, strict=True)
            if one.prompt is not None
        }


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Put a model into evaluation mode for a while."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _scored_row(one: EncodedSample, scores: Sequence[AnswerScore], **written: Any) -> ScoredRow:
    """Return the outputs on one sample; a kind of which there is nothing is left out."""
    outputs = {
        "answer": None if one.answer is None else scores[one.answer],
        "paraphrase": None if one.paraphrase is None else scores[one.paraphrase],
        "wrong": tuple(scores[position] for position in one.wrong),
        **written,
    }
    return ScoredRow(
        index=one.index,
        target=one.target,
        outputs={kind: output for kind, output in outputs.items() if output not in (None, ())},
    )
