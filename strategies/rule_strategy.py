"""Any Oblivion rule as a Flower strategy, for plain Flower apps.

The clients are ordinary Flower clients that return their parameters and ``num-examples``; the strategy takes the
place of ``FedAvg`` in the ServerApp::

    strategy = RuleStrategy(aggregators.get("fedadam")(learning_rate=0.01))
    strategy.start(grid=grid, initial_arrays=arrays, num_rounds=3)
"""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from oblivion.aggregation.rule import Aggregator, RuleState
from oblivion.types import Adapter, ClientUpdate, GlobalState, RoundInfo


class RuleStrategy(FedAvg):
    """Aggregate with an Oblivion rule; sampling and evaluation are those of Flower's ``FedAvg``.

    Parameters
    ----------
    rule : Aggregator
        Any rule of ``oblivion.aggregation``.
    client_key : str, default "client"
        Metric with a number that names the client across rounds; without it the node id does. Updates are summed in
        this order, so runs with the same numbers have the same bits.
    **options
        Passed on to Flower's ``FedAvg``.
    """

    def __init__(self, rule: Aggregator, client_key: str = "client", **options: float | int | str) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.rule = rule
        self.client_key = client_key
        self._state: GlobalState | None = None
        self._rule_state: RuleState = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Remember the global parameters that the clients start from."""
        state = GlobalState(adapter=_tensors(arrays))
        if self._state is None:
            self._rule_state = self.rule.init(state)
        self._state = state
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Turn the clients' parameters into updates and apply the rule."""
        valid, _ = self._check_and_log_replies(replies, is_train=True)
        if not valid or self._state is None:
            return None, None
        updates = [self._update(message, server_round, self._state) for message in valid]
        info = RoundInfo(
            branch="main",
            round=server_round,
            rounds=server_round,
            population=tuple(sorted(update.client_id for update in updates)),
            seed=0,
        )
        state, self._rule_state = self.rule.apply(updates, self._state, self._rule_state, info)
        arrays = ArrayRecord({name: Array(tensor.numpy()) for name, tensor in state.adapter.items()})
        metrics = self.train_metrics_aggr_fn([message.content for message in valid], self.weighted_by_key)
        return arrays, metrics

    def _update(self, message: Message, server_round: int, state: GlobalState) -> ClientUpdate:
        metrics = next(iter(message.content.metric_records.values()))
        received = _tensors(next(iter(message.content.array_records.values())))
        name = metrics.get(self.client_key, message.metadata.src_node_id)
        return ClientUpdate(
            client_id=f"client-{int(name):020d}" if isinstance(name, (int, float)) else str(name),
            round=server_round,
            delta={key: received[key] - tensor for key, tensor in state.adapter.items()},
            num_examples=int(metrics[self.weighted_by_key]),  # type: ignore[arg-type]
            steps=0,
        )


def _tensors(arrays: ArrayRecord) -> Adapter:
    import torch

    return {name: torch.from_numpy(arrays[name].numpy().copy()) for name in sorted(arrays)}
