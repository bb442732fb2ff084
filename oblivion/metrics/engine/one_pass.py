"""Run a suite of metrics on a model in one pass over its rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from oblivion.metrics.engine.context import REFERENCE, EvaluationContext, Metric
from oblivion.metrics.engine.labels import LabelPass
from oblivion.metrics.engine.layout import from_json, results_to_json
from oblivion.metrics.engine.outputs import TextPass, Texts
from oblivion.metrics.engine.suite import OWN, Groups, Suite
from oblivion.replies import SKIPPED
from oblivion.tasks.causal_lm import CausalLM
from oblivion.tasks.task import Task
from oblivion.types import MetricResult, Sample

NO_REFERENCE = "it compares with a model that never saw the forget rows, and none was given"
"""The reason of a metric that lacks nothing but the reference."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The results of a suite.

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
    generated : mapping of str to str
        The name of each metric that is computed from generated texts alone, to the group of these texts.
    """

    results: Mapping[str, MetricResult]
    skipped: tuple[str, ...] = ()
    texts: Texts = field(default_factory=dict)
    generated: Mapping[str, str] = field(default_factory=dict)


def to_open_unlearning(evaluation: Evaluation, manifest: Mapping[str, Any], *, text: bool = False) -> dict[str, Any]:
    """Return plain JSON values in OpenUnlearning's layout, with `manifest` beside the metrics.

    Parameters
    ----------
    evaluation : Evaluation
        The results.
    manifest : mapping
        What they were computed with; ``skipped`` (sample ids) is added to it.
    text : bool, default False
        Whether questions, answers and generations stand beside the scores of generated texts.

    Returns
    -------
    dict
        ``{metric: {"agg_value", "value_by_index": {"0": {...}}, "n", "interval", "reason"}, "manifest": {...}}``.
    """
    texts = {name: evaluation.texts.get(group, {}) for name, group in evaluation.generated.items()} if text else {}
    skipped = {"skipped": list(evaluation.skipped)}
    return {**results_to_json(evaluation.results, texts), "manifest": {**manifest, **skipped}}


def evaluate_model(
    model: Any,
    task: Task,
    groups: Groups,
    *,
    suite: Suite,
    max_new_tokens: int,
    batch_size: int,
    references: Sequence[Mapping[str, Any]] = (),
    generate: bool = True,
) -> Evaluation:
    """Evaluate a model with every metric of a suite that its rows allow.

    Parameters
    ----------
    model, task, max_new_tokens, batch_size
        See `oblivion.metrics.engine.outputs.TextPass`; of a task without text see
        `oblivion.metrics.engine.labels.LabelPass`.
    groups : mapping of str to sequence of Sample
        The rows that the suite chose, or some of them.
    suite : Suite
        What is measured.
    references : sequence of mapping, optional
        The results of models that never saw the forget rows, on the same rows, as `to_open_unlearning` returns them.
    generate : bool, default True
        Whether to generate; without, metrics on text are left out.

    Raises
    ------
    ConfigError
        If a size is not positive.
    InputError
        If a reference is malformed or belongs to other rows, or the model's outputs are not finite.
    """
    one_pass = _pass(model, task, suite, max_new_tokens, batch_size)
    known = [from_json(reference, suite) for reference in references]
    outputs = one_pass.over(groups, _wanted(suite.metrics.values(), generate))
    return Evaluation(
        results=_compute(suite.metrics, EvaluationContext(outputs.rows, known)),
        skipped=outputs.skipped,
        texts=outputs.texts,
        generated=_generated(suite.metrics),
    )


def evaluate_client(
    model: Any,
    task: Task,
    samples: Sequence[Sample],
    *,
    suite: Suite,
    max_new_tokens: int,
    batch_size: int,
) -> dict[str, tuple[float, float]]:
    """Measure a client's own rows with the suite's metrics for clients.

    Parameters
    ----------
    model, task, max_new_tokens, batch_size
        See `oblivion.metrics.engine.outputs.TextPass`.
    samples : sequence of Sample
        The client's rows.
    suite : Suite
        What is measured.

    Returns
    -------
    dict of str to tuple of float
        (sum, weight) pairs that add up over clients, by name; ``skipped`` counts the rows that entered nothing, over
        all rows. A metric that no row allows has weight 0.
    """
    one_pass = _pass(model, task, suite, max_new_tokens, batch_size)
    outputs = one_pass.over({OWN: samples}, _wanted(suite.client_metrics.values(), generate=True))
    results = _compute(suite.client_metrics, EvaluationContext(outputs.rows))
    sums = {name: results[name].sums if name in results else None for name in suite.client_metrics}
    skipped = (float(len(outputs.skipped)), float(len(samples)))
    return {name: pair or (0.0, 0.0) for name, pair in sums.items()} | {SKIPPED: skipped}


def _pass(model: Any, task: Task, suite: Suite, max_new_tokens: int, batch_size: int) -> TextPass | LabelPass:
    """Choose how the outputs are made: with text where the task has text, else from labels alone."""
    if not isinstance(task, CausalLM):
        return LabelPass(model=model, task=task, batch_size=batch_size)
    sizes = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    return TextPass(model=model, task=task, formats=suite.formats, **sizes)


def _wanted(metrics: Iterable[Metric], generate: bool) -> dict[str, set[str]]:
    """Return the kinds of outputs that some metric requires, by group."""
    wanted: dict[str, set[str]] = {}
    for metric in metrics:
        for requirement in metric.requires - {REFERENCE}:
            group, _, kind = requirement.partition(".")
            if generate or kind not in ("generation", "generations"):
                wanted.setdefault(group, set()).add(kind)
    return wanted


def _generated(metrics: Mapping[str, Metric]) -> dict[str, str]:
    asked = {name: next(iter(metric.requires)) for name, metric in metrics.items() if len(metric.requires) == 1}
    return {name: kind.removesuffix(".generation") for name, kind in asked.items() if kind.endswith(".generation")}


def _compute(metrics: Mapping[str, Metric], context: EvaluationContext) -> dict[str, MetricResult]:
    results = {}
    for name, metric in metrics.items():
        missing = context.missing(metric.requires)
        if not missing:
            results[name] = context.result(metric)
        elif missing == [REFERENCE]:
            results[name] = MetricResult(value=None, reason=NO_REFERENCE)
    return results
