"""Any Oblivion rule as a Flower strategy, for plain Flower apps.

The clients are ordinary Flower clients that return their parameters and ``num-examples``; the strategy takes the
place of ``FedAvg`` in the ServerApp:

    strategy = RuleStrategy(aggregators.get("fedadam")(learning_rate=0.01))
    strategy.start(grid=grid, initial_arrays=arrays, num_rounds=3)

What a rule asks of its clients travels with the message: ``proximal-mu`` in the config, as in Flower's FedProx, and for
control variates an ArrayRecord ``correction``, which the client adds to its gradient at every step.
"""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from oblivion.aggregation.rule import Rule, RuleState
from oblivion.aggregation.rules.control import ControlRule
from oblivion.errors import ConfigError, FederationError
from oblivion.types import Adapter, ClientUpdate, GlobalState, RoundInfo


class RuleStrategy(FedAvg):
    """Aggregate with an Oblivion rule; sampling and evaluation are those of Flower's ``FedAvg``.

    Parameters
    ----------
    rule : Rule
        Any rule of ``oblivion.aggregation``.
    client_key : str, default "client"
        Metric with a number that names the client across rounds; without it the node id does. Updates are summed in
        this order, so runs with the same numbers have the same bits.
    client_learning_rate : float, default 0.0
        The clients' constant rate, which rules with control variates need.
    **options
        Passed on to Flower's ``FedAvg``.
    """

    def __init__(
        self,
        rule: Rule,
        client_key: str = "client",
        client_learning_rate: float = 0.0,
        **options: float | int | str,
    ) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        if rule.needs_client_state and client_learning_rate <= 0:
            raise ConfigError(f"{rule!r} needs the clients' rate: RuleStrategy(rule, client_learning_rate=...)")
        self.rule = rule
        self.client_key = client_key
        self.client_learning_rate = client_learning_rate
        self._state: GlobalState | None = None
        self._rule_state: RuleState = {}
        self._names: dict[int, str] = {}
        self._nodes: list[int] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Remember the global parameters that the clients start from, and send what the rule asks of the clients."""
        state = GlobalState(adapter=_tensors(arrays))
        if self._state is None:
            self._rule_state = self.rule.init(state)
        self._state = state
        self._nodes = list(grid.get_node_ids())
        if self.rule.proximal_mu:
            config["proximal-mu"] = self.rule.proximal_mu
        messages = list(super().configure_train(server_round, arrays, config, grid))
        return [self._with_correction(message, server_round) for message in messages]

    def _with_correction(self, message: Message, server_round: int) -> Message:
        if not isinstance(self.rule, ControlRule):
            return message
        node = message.metadata.dst_node_id
        name, info = self._name(node), self._info(server_round)
        correction = self.rule.corrections(self._rule_state, [name], info, self.client_learning_rate)[name]
        content = RecordDict(
            {**message.content, "correction": ArrayRecord({n: Array(t.numpy()) for n, t in correction.items()})}
        )
        return Message(content, dst_node_id=node, message_type=message.metadata.message_type)

    def _name(self, node: int) -> str:
        return self._names.get(node, f"node-{node}")

    def _info(self, server_round: int) -> RoundInfo:
        population = tuple(sorted(self._name(node) for node in self._nodes))
        return RoundInfo(branch="main", round=server_round, rounds=server_round, population=population, seed=0)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Turn the clients' parameters into updates and apply the rule."""
        valid, _ = self._check_and_log_replies(replies, is_train=True)
        if not valid or self._state is None:
            return None, None
        updates = [self._update(message, server_round, self._state) for message in valid]
        info = self._info(server_round)
        state, self._rule_state = self.rule.step(updates, self._state, self._rule_state, info)
        arrays = ArrayRecord({name: Array(tensor.numpy()) for name, tensor in state.adapter.items()})
        metrics = self.train_metrics_aggr_fn([message.content for message in valid], self.weighted_by_key)
        return arrays, metrics

    def _update(self, message: Message, server_round: int, state: GlobalState) -> ClientUpdate:
        metrics = next(iter(message.content.metric_records.values()))
        received = _tensors(next(iter(message.content.array_records.values())))
        node = message.metadata.src_node_id
        name = metrics.get(self.client_key, node)
        self._names[node] = f"client-{int(name):020d}" if isinstance(name, (int, float)) else str(name)
        if self.rule.plain_sgd and "steps" not in metrics:
            raise FederationError(f"{self.rule!r} needs the number of optimizer steps: report it as the metric 'steps'")
        return ClientUpdate(
            client_id=self._names[node],
            round=server_round,
            delta={key: received[key] - tensor for key, tensor in state.adapter.items()},
            num_examples=int(metrics[self.weighted_by_key]),  # type: ignore[arg-type]
            steps=int(metrics.get("steps", 0)),  # type: ignore[arg-type]
        )


def _tensors(arrays: ArrayRecord) -> Adapter:
    import torch

    return {name: torch.from_numpy(arrays[name].numpy().copy()) for name in sorted(arrays)}
