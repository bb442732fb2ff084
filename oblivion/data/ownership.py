"""The functions that all partitions share: they find labels of samples, and make owned samples of rows per client."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from oblivion.errors import ConfigError
from oblivion.types import Sample


def labels_of(samples: Sequence[Sample], partition: str) -> list[str]:
    """Return each sample's label: the outermost part of its `path`, else ``extras["label"]``.

    Raises
    ------
    ConfigError
        If a sample has neither.
    """
    labels = []
    for number, sample in enumerate(samples, start=1):
        label = sample.path[0] if sample.path else sample.extras.get("label")
        if label is None:
            raise ConfigError(
                f"data.partition = '{partition}' needs a label on every row, and row {number} has none; set "
                "data.columns.label to the column with it, or data.partition to 'iid'"
            )
        labels.append(str(label))
    return labels


def check_enough(samples: Sequence[Sample], clients: int, partition: str, each: int = 1) -> None:
    """Check that there are at least `each` rows per client.

    Raises
    ------
    ConfigError
        If there are not.
    """
    if len(samples) < clients * each:
        raise ConfigError(
            f"data.partition = '{partition}': {len(samples)} rows are too few for federation.clients = "
            f"{clients} with at least {each} each; lower federation.clients or load more rows"
        )


def own(samples: Sequence[Sample], rows: Sequence[Sequence[int]]) -> dict[str, tuple[Sample, ...]]:
    """Give the rows at the positions ``rows[k]`` to ``client-k``; each keeps the order of the data."""
    return {
        f"client-{k}": tuple(replace(samples[i], client_id=f"client-{k}") for i in sorted(positions))
        for k, positions in enumerate(rows)
    }
