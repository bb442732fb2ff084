from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oblivion.data.partitions import partitions
from oblivion.errors import ConfigError
from oblivion.types import Sample

ROWS = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=60)


def _samples(labels):
    return [Sample(id=f"s/{i}", prompt="q", answer="a", path=(label,)) for i, label in enumerate(labels)]


@pytest.mark.parametrize("name", ["natural", "iid", "dirichlet", "shards"])
@settings(max_examples=60)
@given(labels=ROWS, clients=st.integers(1, 6), seed=st.integers(0, 2**63 - 1))
def test_every_row_is_owned_once_by_somebody(name, labels, clients, seed):
    samples = _samples(labels)
    try:
        owned = partitions.get(name)(samples, clients=clients, seed=seed)
    except ConfigError as error:
        # Refusal is right only where not every client can have a row (or a whole group, or its shards).
        assert len(set(labels)) < clients or len(samples) < 2 * clients, str(error)
        return
    assert list(owned) == [f"client-{k}" for k in range(clients)]
    assert Counter(row.id for rows in owned.values() for row in rows) == Counter(row.id for row in samples)
    for client, rows in owned.items():
        assert rows and {row.client_id for row in rows} == {client}
        assert [row.id for row in rows] == sorted((row.id for row in rows), key=lambda i: int(i[2:]))
    assert partitions.get(name)(samples, clients=clients, seed=seed) == owned


@settings(max_examples=60)
@given(labels=ROWS, clients=st.integers(1, 8))
def test_natural_never_splits_a_group(labels, clients):
    if clients > len(set(labels)):
        clients = len(set(labels))
    owned = partitions.get("natural")(_samples(labels), clients=clients, seed=0)
    groups = [{row.path[0] for row in rows} for rows in owned.values()]
    assert sum(len(group) for group in groups) == len(set(labels))
    sizes = [len(group) for group in groups]
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=60)
@given(rows=st.integers(1, 80), clients=st.integers(1, 10), per=st.integers(1, 4))
def test_sizes_of_iid_and_shards_differ_little(rows, clients, per):
    samples = _samples(["abc"[i % 3] for i in range(rows)])
    if rows >= clients:
        sizes = [len(part) for part in partitions.get("iid")(samples, clients=clients, seed=0).values()]
        assert max(sizes) - min(sizes) <= 1
    if rows >= clients * per:
        parts = partitions.get("shards")(samples, clients=clients, seed=0, per_client=per)
        sizes = [len(part) for part in parts.values()]
        assert max(sizes) - min(sizes) <= per
