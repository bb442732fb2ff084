"""Run a suite of metrics on a model in one pass: every answer is scored once, every prompt generated from once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from oblivion.errors import ConfigError
from oblivion.metrics.engine.context import REFERENCE, AnswerScore, EvaluationContext, Metric, ScoredRow
from oblivion.metrics.engine.encoding import AnswerRows, EncodedSample
from oblivion.metrics.engine.generation import Prompt
from oblivion.metrics.engine.generation import generate as generate_answers
from oblivion.metrics.engine.layout import from_json, read_reference
from oblivion.metrics.engine.layout import to_open_unlearning as _layout
from oblivion.metrics.engine.scoring import score_rows
from oblivion.metrics.exact_memorization import exact_memorization
from oblivion.metrics.extraction_strength import extraction_strength
from oblivion.metrics.rouge import start_rouge
from oblivion.metrics.suites import suites
from oblivion.tasks.causal_lm import CausalLM
from oblivion.types import MetricResult, Sample

__all__ = ["Evaluation", "evaluate_client", "evaluate_model", "from_json", "read_reference", "to_open_unlearning"]

_TOKENS_PER_ROW = 128
NO_REFERENCE = "it compares with a model that never saw the forget rows, and none was given"
"""Why there is no value where the reference alone is missing."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a suite found.

    Attributes
    ----------
    results : mapping of str to MetricResult
        Metric name to result. Metrics whose rows are not there are left out; those that lack only a reference have
        the value None, and a reason.
    skipped : tuple of str
        Ids of samples that entered nothing, because one of their rows is longer than the context (or is an answer
        without a token of its own).
    texts : mapping of str to mapping
        Group to row position (as text) to ``input``, ``ground_truth`` and ``generation``.
    """

    results: Mapping[str, MetricResult]
    skipped: tuple[str, ...] = ()
    texts: Mapping[str, Mapping[str, Mapping[str, str]]] = field(default_factory=dict)


def to_open_unlearning(evaluation: Evaluation, manifest: Mapping[str, Any], *, text: bool = False) -> dict[str, Any]:
    """Plain JSON values in OpenUnlearning's layout, with `manifest` beside the metrics.

    Parameters
    ----------
    evaluation : Evaluation
        The results.
    manifest : mapping
        What they were computed with; ``skipped`` (sample ids) is added to it.
    text : bool, default False
        Whether questions, answers and generations stand beside the ROUGE scores.

    Returns
    -------
    dict
        ``{metric: {"agg_value", "value_by_index": {"0": {...}}, "n", "interval", "reason"}, "manifest": {...}}``.
    """
    texts = {f"{group}_Q_A_ROUGE": rows for group, rows in evaluation.texts.items()} if text else {}
    return {**_layout(evaluation.results, texts), "manifest": {**manifest, "skipped": list(evaluation.skipped)}}


def evaluate_model(
    model: Any,
    task: CausalLM,
    groups: Mapping[str, Sequence[Sample]],
    *,
    max_new_tokens: int,
    batch_size: int,
    reference: Mapping[str, Any] | None = None,
    generate: bool = True,
    suite: str = "tofu",
) -> Evaluation:
    """Evaluate a model with every metric of a suite that its rows allow.

    Parameters
    ----------
    model : transformers or peft model
        Any causal LM (merge its adapter first, that is faster).
    task : CausalLM
        Its tokenizer, template and context; a sample with a row longer than the context is skipped and named.
    groups : mapping of str to sequence of Sample
        ``forget``, ``retain``, ``ra``, ``wf``, ``holdout``, or some of them.
    max_new_tokens : int
        The most tokens of a generated answer.
    batch_size : int
        Answers generated together; scoring takes batches of 128 tokens for each of them, on a CPU of 1,024 at most.
    reference : mapping, optional
        Results of a model that never saw the forget rows, on the same rows, as `to_open_unlearning` returns them.
    generate : bool, default True
        Whether to generate; without, metrics on text are left out.
    suite : str, default "tofu"
        Registered name of the suite.

    Raises
    ------
    ConfigError
        If the suite is unknown or a size is not positive.
    InputError
        If the reference is malformed or belongs to other rows, or the model's outputs are not finite.
    """
    for name, size in (("batch_size", batch_size), ("max_new_tokens", max_new_tokens), ("max_length", task.max_length)):
        if size < 1:
            raise ConfigError(f"{name} = {size}: expected at least 1")
    metrics: Mapping[str, Metric] = suites.get(suite)()
    known = None if reference is None else from_json(reference)
    wanted = _wanted(metrics.values(), generate)
    rows = AnswerRows(task)
    encoded = {group: rows.encode(samples, wanted[group]) for group, samples in groups.items() if group in wanted}
    prompted = [(one, one.prompt) for ones in encoded.values() for one in ones if one.prompt is not None]
    prompts = [prompt for _, prompt in prompted]
    ends = {row.ids[-1] for row in rows.rows}
    limits = {"max_new_tokens": max_new_tokens, "max_length": task.max_length, "batch_size": batch_size}
    tokenizer = task.tokenizer
    tokens, pad = batch_size * _TOKENS_PER_ROW, tokenizer.pad_token_id
    with _evaluating(model):
        written = dict(zip(prompts, generate_answers(model, tokenizer, prompts, ends=ends, **limits), strict=True))
        pending = start_rouge([(one.sample.answer, written[prompt]) for one, prompt in prompted])
        scores = score_rows(model, rows.rows, pad_id=pad, max_tokens=tokens, moments=rows.with_moments)
    scores = _with_texts(scores, rows, tokenizer)
    agreement = {id(one): found for (one, _), found in zip(prompted, pending(), strict=True)}
    context = EvaluationContext(
        {group: [_scored(one, scores, written, agreement) for one in ones] for group, ones in encoded.items()}, known
    )
    texts = {group: _texts(ones, written, task) for group, ones in encoded.items()}
    return Evaluation(results=_compute(metrics, context), skipped=tuple(rows.skipped), texts=texts)


def _wanted(metrics: Iterable[Metric], generate: bool) -> dict[str, set[str]]:
    """Group to the kinds of outputs that some metric asks for."""
    wanted: dict[str, set[str]] = {}
    for metric in metrics:
        for requirement in metric.requires - {REFERENCE}:
            group, _, kind = requirement.partition(".")
            if generate or kind != "generation":
                wanted.setdefault(group, set()).add(kind)
    return wanted


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode for a while."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _with_texts(scores: Sequence[AnswerScore], rows: AnswerRows, tokenizer: Any) -> list[AnswerScore]:
    complete = list(scores)
    distinct = rows.rows
    for index in rows.with_text:
        text = tokenizer.decode(distinct[index].labels, skip_special_tokens=True)
        complete[index] = replace(complete[index], text=text)
    return complete


def _scored(
    one: EncodedSample,
    scores: Sequence[AnswerScore],
    written: Mapping[Prompt, str],
    agreement: Mapping[int, Mapping[str, float] | None],
) -> ScoredRow:
    return ScoredRow(
        index=one.index,
        target=one.sample.answer,
        answer=None if one.answer is None else scores[one.answer],
        paraphrase=None if one.paraphrase is None else scores[one.paraphrase],
        wrong=tuple(scores[position] for position in one.wrong),
        generation=None if one.prompt is None else written[one.prompt],
        rouge=agreement.get(id(one)),
    )


def _compute(metrics: Mapping[str, Metric], context: EvaluationContext) -> dict[str, MetricResult]:
    results = {}
    for name, metric in metrics.items():
        missing = context.missing(metric.requires)
        if not missing:
            results[name] = context.result(metric)
        elif missing == [REFERENCE]:
            results[name] = MetricResult(value=None, reason=NO_REFERENCE)
    return results


def _texts(ones: Sequence[EncodedSample], written: Mapping[Prompt, str], task: CausalLM) -> dict[str, dict[str, str]]:
    return {
        str(one.index): {
            "input": task.template.prompt(task.tokenizer, one.sample.prompt),
            "ground_truth": one.sample.answer,
            "generation": written[one.prompt],
        }
        for one in ones
        if one.prompt is not None
    }


def evaluate_client(model: Any, task: CausalLM, samples: Sequence[Sample]) -> dict[str, tuple[float, float]]:
    """Measure a client's own rows, without generation.

    Returns
    -------
    dict of str to tuple of float
        (sum, weight) pairs that add up over clients: ``loss`` (nats over tokens, EOS counted), ``probability``,
        ``exact_memorization``, ``extraction_strength`` (over rows), and ``skipped`` (rows longer than the context,
        over all rows).
    """
    rows = AnswerRows(task)
    encoded = rows.encode(samples, {"answer"})
    with _evaluating(model):
        distinct = score_rows(model, rows.rows, pad_id=task.tokenizer.pad_token_id)
    scores = [distinct[one.answer] for one in encoded if one.answer is not None]
    measured = {
        "loss": (
            float(sum(-score.log_probs.sum() for score in scores)),
            float(sum(len(score.log_probs) for score in scores)),
        ),
        "probability": (float(sum(score.probability for score in scores)), float(len(scores))),
        "skipped": (float(len(rows.skipped)), float(len(samples))),
    }
    for name, measure in (("exact_memorization", exact_memorization), ("extraction_strength", extraction_strength)):
        values = [value for value in map(measure, scores) if value is not None]
        measured[name] = (float(sum(values)), float(len(values)))
    return measured
