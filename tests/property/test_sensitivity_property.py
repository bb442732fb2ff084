"""With privacy of clients, what a client pays for a round bounds how far the round moves without it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from oblivion.privacy.budget import charge
from oblivion.selection import select_clients


@given(
    clients=st.integers(1, 9),
    per_round=st.integers(1, 10),
    seed=st.integers(0, 1000),
    missing=st.sets(st.integers(0, 8)),
)
def test_a_charge_is_the_largest_movement_of_the_sum(
    clients: int, per_round: int, seed: int, missing: set[int]
) -> None:
    """Updates are at most one clipping bound long, so the sum moves by one for each that comes or goes."""
    there = [f"client-{n}" for n in range(clients)]
    away = {f"client-{n}" for n in missing}

    def asked(population: list[str]) -> set[str]:
        return set(select_clients(population, per_round, seed, 1)) - away

    chosen = select_clients(there, per_round, seed, 1)
    charged = charge("client", dict.fromkeys(there, 1), chosen, asked(there), clients > per_round)
    for client in there:
        moved = len(asked(there) ^ asked([other for other in there if other != client]))
        assert moved <= charged.get(client, 0)
        if not away:
            assert moved == charged.get(client, 0)
