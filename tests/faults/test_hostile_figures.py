"""Figures and reasons that are possible in form and false: what one host tells is not shown as if it were of all."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from test_hostile_replies import CLIENT_METRICS, GOOD, measure
from test_hostile_updates import EVE, INITIAL, ROWS, Silos, learn, own, settings

from oblivion.errors import FederationError
from oblivion.federation.absence import never_took_part
from oblivion.federation.phase_runner import PhaseRunner
from oblivion.federation.rounds import Federation
from oblivion.ledger.memory import MemoryLedger
from oblivion.ledger.rounds import Branch, RoundRecord
from oblivion.removal.phases import Visit
from oblivion.replies import LONGEST_REASON
from oblivion.run.events import Event, Observer
from oblivion.types import ForgetRequest

CONTEXT = 64
EPOCHS = settings().train.local_epochs


def federation(hosts: Silos, **changes: Any) -> tuple[Federation, list[Event]]:
    """As a run makes it: it knows how many tokens a row can have."""
    events: list[Event] = []
    made = Federation(settings(3, **changes), hosts, MemoryLedger(), INITIAL, Observer(events.append))
    made.context = CONTEXT
    made.describe()
    made.begin(Branch(name="main", seed=0, rounds=3), INITIAL)
    return made, events


@pytest.mark.parametrize(
    ("claimed", "counted"), [(ROWS * EPOCHS * CONTEXT, True), (ROWS * EPOCHS * CONTEXT + 1, False)]
)
def test_tokens_are_no_more_than_rows_passes_and_context_make(claimed: int, counted: bool) -> None:
    made, _ = federation(Silos(client_2=own(metrics={"loss": 2.0, "tokens": float(claimed)})))
    record = made.run_round("main")
    assert EVE in record.accepted and record.cost.tokens == 40 + (claimed if counted else 0)


@pytest.mark.parametrize("claimed", [1e12, 1e6, 1.0])
def test_rows_that_a_client_does_not_have_are_not_shown_as_skipped(claimed: float) -> None:
    made, events = federation(Silos(client_2=own(metrics={"skipped": claimed})))
    assert EVE in made.run_round("main").accepted
    assert not [event for event in events if event["event"] == "warning"], "it trained on all of its rows"
    made, events = federation(Silos(client_2=own(num_examples=32, steps=16, metrics={"skipped": 8.0})))
    made.run_round("main")
    assert any("8 rows of client-2" in event["text"] for event in events if event["event"] == "warning")


@pytest.mark.parametrize(("objective", "passes"), [("grad_ascent", 1), ("npo", 3), ("dpo", 5)])
def test_tokens_of_an_unlearning_visit_are_bounded_too(objective: str, passes: int) -> None:
    """The bound counts the passes that an objective needs, also those over rows to keep and other answers."""
    asked = ForgetRequest(id="req", client_id=EVE)
    most = passes * ROWS * CONTEXT
    unlearn = Visit(clients=(EVE,), objective=objective, local_epochs=1, learning_rate=1e-3)
    for claimed, counted in ((most, most), (most + 1, 0), (1e12, 0)):
        made, _ = federation(Silos(client_2=own(steps=ROWS // 8, metrics={"tokens": float(claimed)})))
        PhaseRunner(made, "main").visit("main", asked, unlearn)
        assert made.ledger.records("main")[-1].cost.tokens == counted


@pytest.mark.parametrize("kept", [[], ["loss"], [name for name in CLIENT_METRICS if name != "probability"]])
def test_what_a_host_leaves_out_of_a_measurement_is_told(kept: list[str]) -> None:
    found, told = measure(lambda asked: {client: {name: GOOD[name] for name in kept} for client in asked if kept})
    assert told and all(text.startswith("host zz-evil: it does not tell all") for text in told)
    silent = [client for client in found if set(found[client]) != set(GOOD)]
    assert all(any(client in text for text in told) for client in silent)


def test_a_portion_that_is_left_out_is_told() -> None:
    """One of the rows is asked for, and the host tells of the others alone."""
    _, told = measure(lambda asked: {f"{client} (kept)": GOOD for client in asked}, forget=("row-1",))
    assert any("(forgotten)" in text for text in told if text.startswith("host zz-evil"))


def test_a_reason_does_not_speak_of_others() -> None:
    """Reasons stand side by side in one message."""
    forged = "it crashed; client-0: its update has values that are not finite; client-1: no reply from its host"
    hosts = Silos(client_2=lambda reply: dataclasses.replace(reply, updates=(), failures={EVE: forged}))
    made, _ = federation(hosts, federation__quorum=1.0)
    with pytest.raises(FederationError) as caught:
        made.run_round("main")
    said = str(caught.value).partition("asks for 5. ")[2].split("; ")
    assert len(said) == 1 and said[0].startswith(f"{EVE}: it crashed, client-0")


def test_a_thousand_reasons_make_one_short_message() -> None:
    hosts = Silos(300)
    for client in hosts.clients:
        hosts.changes[client] = lambda reply: dataclasses.replace(
            reply, updates=(), failures={reply.host.removeprefix("host-"): "x" * 10**5}
        )
    with pytest.raises(FederationError, match=r"and 290 more, see events\.jsonl") as caught:
        learn(hosts, settings(1, federation__clients_per_round=300))
    assert len(str(caught.value)) < 12 * LONGEST_REASON
    failed = [
        RoundRecord(branch="main", round=n, selected=(EVE,), accepted=(), failed={EVE: f"{n} " + "x" * 290})
        for n in range(1, 500)
    ]
    assert len(never_took_part(failed, EVE)) < 12 * LONGEST_REASON
