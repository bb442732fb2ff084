from collections import Counter

import numpy as np
import pytest

from oblivion.data.partitions import dirichlet as partition_dirichlet
from oblivion.data.partitions import iid as partition_iid
from oblivion.data.partitions import natural as partition_natural
from oblivion.data.partitions import partitions
from oblivion.data.partitions import shards as partition_shards
from oblivion.errors import ConfigError
from oblivion.parameters import ParameterError
from oblivion.types import Sample


def _samples(*labels, client=None):
    return tuple(
        Sample(id=f"s/{i}", client_id=client or "", prompt=f"q{i}", answer="a", path=(label,) if label else ())
        for i, label in enumerate(labels)
    )


def _ids(owned):
    return {client: [sample.id for sample in rows] for client, rows in owned.items()}


def test_natural_deals_whole_groups_in_blocks():
    # Groups in order of appearance: c (0, 3), a (1), b (2, 4), d (5), e (6). Five groups on two clients: the
    # first gets three of them, c, a, b, and the second d, e.
    owned = partition_natural.partition(_samples(*"cabcbde"), clients=2, seed=0)
    assert _ids(owned) == {"client-0": ["s/0", "s/1", "s/2", "s/3", "s/4"], "client-1": ["s/5", "s/6"]}
    assert all(row.client_id == client for client, rows in owned.items() for row in rows)


def test_natural_keeps_named_owners():
    samples = _samples("x", client="ada") + _samples("x", client="bob")
    owned = partition_natural.partition(samples, clients=2, seed=0)
    assert owned == {"ada": samples[:1], "bob": samples[1:]}
    with pytest.raises(ConfigError, match=r"names 2 owners; set federation\.clients = 2"):
        partition_natural.partition(samples, clients=3, seed=0)


def test_natural_needs_owners():
    with pytest.raises(ConfigError, match=r"data\.columns\.client .* 'iid', 'dirichlet' or 'shards'"):
        partition_natural.partition(_samples("", ""), clients=1, seed=0)
    with pytest.raises(ConfigError, match=r"data\.columns\.client"):
        partition_natural.partition((), clients=1, seed=0)
    with pytest.raises(ConfigError, match=r"federation\.clients to 2 or less"):
        partition_natural.partition(_samples("a", "b", "b"), clients=3, seed=0)


def test_natural_goes_by_group_where_only_some_rows_name_an_owner():
    samples = (*_samples("a", client="ada"), *_samples("", "b")[1:])
    assert set(partition_natural.partition(samples, clients=2, seed=0)) == {"client-0", "client-1"}


def test_iid_parts_are_equal_and_shuffled():
    owned = partition_iid.partition(_samples(*["x"] * 103), clients=10, seed=1)
    assert sorted(len(rows) for rows in owned.values()) == [10] * 7 + [11] * 3
    assert _ids(owned)["client-0"] != [f"s/{i}" for i in range(11)]
    other = partition_iid.partition(_samples(*["x"] * 103), clients=10, seed=2)
    assert _ids(other) != _ids(owned)


def test_iid_replaces_named_owners():
    owned = partition_iid.partition(_samples("x", "x", client="ada"), clients=2, seed=0)
    assert [row.client_id for rows in owned.values() for row in rows] == ["client-0", "client-1"]


def test_dirichlet_limits():
    samples = _samples(*[f"author-{i % 10}" for i in range(1000)])
    even = partition_dirichlet.partition(samples, clients=5, seed=0, alpha=1e6)
    # Every label (100 rows) comes down at 20 per client, give or take one for rounding.
    for rows in even.values():
        assert all(abs(n - 20) <= 1 for n in Counter(row.path[0] for row in rows).values())
    skewed = partition_dirichlet.partition(samples, clients=5, seed=0, alpha=1e-3)
    owners = Counter()
    for rows in skewed.values():
        owners.update({row.path[0] for row in rows})
    assert set(owners) == {f"author-{i}" for i in range(10)} and sum(owners.values()) <= 12


def test_dirichlet_draws_again_until_everyone_has_enough():
    samples = _samples(*"abcdefgh" * 4)
    owned = partition_dirichlet.partition(samples, clients=3, seed=3, alpha=0.1, min_samples=6)
    assert min(len(rows) for rows in owned.values()) >= 6
    with pytest.raises(ConfigError, match=r"none of 100 draws .*raise data\.partition-parameters\.alpha"):
        partition_dirichlet.partition(_samples(*["a"] * 4), clients=4, seed=0, alpha=1e-6)


def test_dirichlet_shares_follow_the_distribution():
    # A share of Dir(alpha, ..., alpha) over K clients has mean 1/K and variance (K-1) / (K^2 (K alpha + 1)): for
    # K = 4 and alpha = 1 that is 3/80 = 0.0375. 400 labels with 50 rows each give 1600 shares.
    samples = _samples(*[f"l{i // 50}" for i in range(20_000)])
    owned = partition_dirichlet.partition(samples, clients=4, seed=0, alpha=1.0)
    counts = [Counter(row.path[0] for row in rows) for rows in owned.values()]
    shares = np.array([[count[f"l{k}"] for k in range(400)] for count in counts])
    assert shares.sum() == 20_000
    assert np.var(shares / 50) == pytest.approx(0.0375, abs=0.004)
    assert np.allclose(shares.mean(axis=1) / 50, 0.25, atol=0.04)


def test_labels_from_extras_and_their_absence():
    samples = [Sample(id=str(i), prompt="q", answer="a", extras={"label": i % 2}) for i in range(8)]
    owned = partition_shards.partition(samples, clients=2, seed=0, per_client=1)
    assert [{row.extras["label"] for row in rows} for rows in owned.values()] in ([{0}, {1}], [{1}, {0}])
    for module in (partition_dirichlet, partition_shards):
        with pytest.raises(ConfigError, match=r"row 1 has none; set data\.columns\.label"):
            module.partition(_samples("", "", ""), clients=1, seed=0)


def test_shards_have_few_labels():
    # 10 labels of 20 rows, 5 clients with 2 shards each: a shard is exactly one label.
    samples = _samples(*[f"l{i % 10}" for i in range(200)])
    owned = partition_shards.partition(samples, clients=5, seed=0)
    assert all(len(rows) == 40 and len({row.path[0] for row in rows}) == 2 for rows in owned.values())


@pytest.mark.parametrize(
    ("module", "parameters", "key"),
    [
        (partition_dirichlet, {"alpha": 0}, "alpha"),
        (partition_dirichlet, {"alpha": "0.5"}, "alpha"),
        (partition_dirichlet, {"alpha": True}, "alpha"),
        (partition_dirichlet, {"alpha": float("nan")}, "alpha"),
        (partition_dirichlet, {"min_samples": 0}, "min_samples"),
        (partition_shards, {"per_client": 0}, "per_client"),
        (partition_shards, {"per_client": 1.5}, "per_client"),
    ],
)
def test_parameters_out_of_range(module, parameters, key):
    with pytest.raises(ParameterError, match=f"{key} = .* is not allowed; it must be"):
        module.partition(_samples(*"aabb"), clients=2, seed=0, **parameters)


@pytest.mark.parametrize("name", ["iid", "dirichlet", "shards"])
def test_too_few_rows(name):
    with pytest.raises(ConfigError, match=r"2 rows are too few for federation\.clients = 3"):
        partitions.get(name)(_samples("a", "b"), clients=3, seed=0)
