"""One of Flower's own strategies as a server rule, for the learning phase.

A Flower strategy remembers things in its attributes; a rule is a pure function of its arguments, so that a round can
be computed again. Here a new strategy is made for every round, what the last one remembered is put back from the rule
state, and what it remembers afterwards is taken out. Replies come to it in client-id order.

What a removal can say of it is only that whatever the strategy keeps holds the clients' updates: it is computed again
by ``retrain`` and ``rollback``, begins anew in ``local``, and is not covered by ``exclude``.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from oblivion.aggregation.rule import Rule, RuleState
from oblivion.errors import FederationError, nearest
from oblivion.types import ClientUpdate, GlobalState, RoundInfo

if TYPE_CHECKING:
    from flwr.app import ArrayRecord, RecordDict
    from torch import Tensor

WRAPPED = (
    "Bulyan",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedMedian",
    "FedTrimmedAvg",
    "FedYogi",
    "Krum",
    "MultiKrum",
)
"""The strategies that make the next parameters from the replies alone. Flower's FedProx is its FedAvg with another
config for clients (here: ``fedprox``); its QFedAvg needs losses, its privacy wrappers draw noise that cannot be drawn
again."""


@dataclass(frozen=True)
class _Reply:
    """The parts of a message that a strategy reads; a real message can only be made inside a Flower run."""

    content: RecordDict

    def has_error(self) -> bool:
        return False


@dataclass(frozen=True, kw_only=True)
class FlowerRule(Rule):
    """Let a strategy of ``flwr.serverapp.strategy`` aggregate.

    Attributes
    ----------
    strategy : str
        The class name of the strategy, one of `WRAPPED`.
    options : mapping
        The keyword arguments of the strategy, such as ``{"beta": 0.2}``.
    """

    strategy: str
    options: Mapping[str, Any] = field(default_factory=dict)

    state_fields: ClassVar[tuple[str, ...]] = ("whatever the Flower strategy keeps: made of all rounds' updates",)
    state_by_tensor: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.strategy not in WRAPPED:
            raise ValueError(f"strategy = {self.strategy!r} cannot be wrapped; {nearest(self.strategy, WRAPPED)}")
        self._make()

    def _make(self) -> Any:
        from flwr.serverapp import strategy

        return getattr(strategy, self.strategy)(**{k.replace("-", "_"): v for k, v in self.options.items()})

    def aggregate(
        self, updates: Sequence[ClientUpdate], state: GlobalState, rule_state: RuleState, info: RoundInfo
    ) -> tuple[GlobalState, RuleState]:
        """Let the strategy aggregate the clients' models, ``x + delta_k`` in fp32, in client-id order.

        Raises
        ------
        FederationError
            If the strategy makes nothing of the updates; its log says why.
        """
        import torch
        from flwr.app import MetricRecord, RecordDict

        theirs = self._make()
        _remember(theirs, state, rule_state)
        replies = []
        for update in updates:
            model = {name: state.adapter[name] + update.delta[name] for name in sorted(state.adapter)}
            weight = MetricRecord({theirs.weighted_by_key: update.num_examples})
            replies.append(_Reply(RecordDict({theirs.arrayrecord_key: _record(model), "metrics": weight})))
        with _quiet():
            made, _ = theirs.aggregate_train(info.round, replies)
        if made is None:
            raise FederationError(
                f"Flower's {self.strategy} says that {len(updates)} updates are too few, and made no model"
            )
        adapter = {name: torch.from_numpy(made[name].numpy().copy()).to(torch.float32) for name in sorted(made)}
        return replace(state, adapter=adapter), _remembered(theirs)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Flower from logging every aggregation, which may be one of thousands, or one that is computed again."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _record(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    from flwr.app import Array, ArrayRecord

    return ArrayRecord({name: Array(tensor.numpy()) for name, tensor in tensors.items()})


def _remember(strategy: Any, state: GlobalState, rule_state: RuleState) -> None:
    """Put back what a strategy remembered, and the parameters that its ``configure_train`` would have seen."""
    from flwr.serverapp.strategy.fedopt import FedOpt

    if isinstance(strategy, FedOpt):
        strategy.current_arrays = {name: t.numpy().copy() for name, t in sorted(state.adapter.items())}
    elif hasattr(strategy, "current_arrays"):
        strategy.current_arrays = _record(dict(sorted(state.adapter.items())))
    kept: dict[str, dict[str, Any]] = {}
    for key, tensor in sorted(rule_state.items()):
        attribute, _, name = key.partition("/")
        kept.setdefault(attribute, {})[name] = tensor.numpy().copy()
    for attribute, arrays in kept.items():
        numbered = all(name.startswith("#") for name in arrays)
        setattr(strategy, attribute, list(arrays.values()) if numbered else arrays)


def _remembered(strategy: Any) -> RuleState:
    """Return all attributes with arrays but the parameters: ``<attribute>/<name>``, or ``<attribute>/#<number>``."""
    import numpy as np
    import torch

    kept = {}
    for attribute, value in sorted(vars(strategy).items()):
        if attribute == "current_arrays" or not isinstance(value, dict | list):
            continue
        named = value if isinstance(value, dict) else {f"#{i:06d}": array for i, array in enumerate(value)}
        for name, array in named.items():
            if isinstance(array, np.ndarray):
                kept[f"{attribute}/{name}"] = torch.from_numpy(np.array(array, dtype=np.float32, copy=True))
    return kept
