"""A scenario that runs in seconds: four clients with a few rows each, two rounds, a random model.

A test that names its methods in a list keeps the settings of those that the scenario has.
"""

from __future__ import annotations

from pathlib import Path

import pytest

MICRO = """
model.name = "{model}"
engine = "inline"
lora.rank = 4
lora.alpha = 8
federation.clients = 4
federation.rounds = 3
federation.clients-per-round = 4
federation.joins.client-2 = 2
train.local-epochs = 1
train.batch-size = 4
train.cohort = 2
data.parameters.rows_per_client = 8
data.parameters.holdout_authors = 1
data.public = "dataset"
forget.client = "client-2"
forget.methods.exclude.recovery-rounds = 1
forget.methods.local = {{ local-epochs = 1, recovery-rounds = 1 }}
evaluate.limit = 4
evaluate.max-new-tokens = 3
simulation.hosts = 2
"""


@pytest.fixture(scope="session")
def micro_scenario(micro_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scenario") / "micro.toml"
    path.write_text(MICRO.format(model=micro_model))
    return path
