"""Plans: phases, refusals, the checklist, and costs worked out by hand."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest

from oblivion.aggregation.rules.fedadam import FedAdam
from oblivion.aggregation.rules.fedavg import FedAvg
from oblivion.aggregation.rules.krum import Krum
from oblivion.aggregation.rules.median import Median
from oblivion.aggregation.rules.scaffold import Scaffold
from oblivion.aggregation.rules.trimmed_mean import TrimmedMean
from oblivion.aggregation.schemes.fedex import FedEx
from oblivion.aggregation.schemes.fedit import FedIT
from oblivion.errors import ConfigError, PlanRefusedError
from oblivion.ledger.rounds import RoundRecord
from oblivion.removal import removals
from oblivion.removal.combinations import Add
from oblivion.removal.context import PlanningContext
from oblivion.removal.exclude import Exclude
from oblivion.removal.local import Local
from oblivion.removal.phases import Restore, Rounds, Visit
from oblivion.removal.plan import Removal, RemovalPlan, plan_removal, plan_values
from oblivion.removal.retrain import Retrain
from oblivion.removal.rollback import Rollback
from oblivion.removal.settings import check_methods, removal_from
from oblivion.selection import population, select_clients
from oblivion.types import ForgetRequest

WHOLE = ForgetRequest(id="r1", client_id="c")
WITH_PUBLIC = frozenset({"target_online", "public_data"})
SOME = ForgetRequest(id="r2", client_id="c", sample_ids=("s1",))
NEVER = ForgetRequest(id="r3", client_id="never")
EVERY: tuple[Removal, ...] = (Retrain(), Rollback(), Exclude(), Local())
EXACT: tuple[Removal, ...] = (Retrain(), Rollback())


@dataclass(frozen=True, kw_only=True)
class KeepsOfClients(FedAvg):
    """A rule that keeps something of each client between rounds."""

    needs_client_state: ClassVar[bool] = True


def situation(**changes: Any) -> PlanningContext:
    """Four rounds; a and b from the start, c from round 2, d from round 4; c is to be forgotten."""
    joins = {"c": 2, "d": 4}
    records = [
        RoundRecord(
            branch="main",
            round=number,
            selected=population(["a", "b", "c", "d"], joins, number),
            accepted=population(["a", "b", "c", "d"], joins, number),
        )
        for number in range(1, 5)
    ]
    values: dict[str, Any] = {
        "records": records,
        "restorable": (0, 1, 2, 3, 4),
        "aggregator": FedAvg(),
        "scheme": FedIT(),
        "rounds": 4,
        "head": 4,
        "seed": 0,
        "clients_per_round": 8,
        "joins": joins,
        "steps": {"a": 2, "b": 3, "d": 5},
        "forgotten": 8,
        "batch_size": 10,
        "learning": (Rounds(rounds=4, replay=True),),
        "available": frozenset({"target_online", "checkpoints"}),
    }
    return PlanningContext(**{**values, **changes})


def planned(removal: Removal, request: ForgetRequest, context: PlanningContext) -> RemovalPlan:
    return plan_removal(removal, type(removal).__name__.lower(), request, context)


def status(plan: RemovalPlan) -> dict[str, str]:
    return {one.item: one.status for one in plan.checklist}


def test_retrain_repeats_every_round_from_the_initial_adapter() -> None:
    # rounds 1 to 3: a and b, 2 + 3 steps each; round 4 also d: 5. In all 3 * 5 + 10 = 25
    plan = planned(Retrain(), WHOLE, situation())
    assert plan.phases == (Restore(0), Rounds(rounds=4, replay=True))
    assert plan.client_steps == 25 and plan.fraction == 1.0
    assert (plan.method, plan.guarantee, plan.from_round) == ("retrain", "exact", 2)


def test_exclude_goes_on_without_the_client() -> None:
    # rounds 5 and 6: a, b, d: 2 + 3 + 5 = 10 each; 20 of 25
    plan = planned(Exclude(recovery_rounds=2), WHOLE, situation())
    assert plan.phases == (Rounds(rounds=2),)
    assert plan.client_steps == 20 and plan.fraction == pytest.approx(0.8)
    assert (plan.guarantee, plan.label) == ("none", "exclude + 2 rounds")
    assert status(plan)["global adapter"] == "not covered"


def test_local_unlearns_once_and_recovers() -> None:
    # the visit: 4 passes over a batch, in round 5; rounds 6 and 7: 10 each; 24 of 25
    plan = planned(Local(objective="npo", parameters={"beta": 0.5}, local_epochs=4), WHOLE, situation())
    assert plan.phases == (
        Visit(
            clients=("c",),
            objective="npo",
            parameters={"beta": 0.5},
            combine=Add(scale=1.0, max_norm=100.0),
            local_epochs=4,
            learning_rate=1e-3,
            anchor="none",
        ),
        Rounds(rounds=2),
    )
    visit = plan.phases[0]
    assert isinstance(visit, Visit) and visit.reset_rule_state, "its momentum or moments hold the client"
    assert plan.client_steps == 24 and plan.fraction == pytest.approx(24 / 25)
    assert (plan.guarantee, plan.from_round) == ("approximate", 2)


def test_local_without_recovery_is_the_visit_alone() -> None:
    plan = planned(Local(recovery_rounds=0, local_epochs=4), WHOLE, situation())
    assert [phase.kind for phase in plan.phases] == ["visit"]
    assert plan.client_steps == 4 and plan.fraction == pytest.approx(0.16)


# Rollback: where it begins, how far it goes, what it costs


def test_rollback_begins_right_before_the_client() -> None:
    # c joined in round 2: rounds 2 and 3 cost 2 + 3 each, round 4 also d: 5 + 5 + 10 = 20 of 25
    plan = planned(Rollback(), WHOLE, situation())
    assert plan.phases == (Restore(1), Rounds(rounds=3, replay=True))
    assert plan.client_steps == 20 and plan.fraction == pytest.approx(0.8)
    assert (plan.method, plan.label, plan.guarantee, plan.from_round) == ("rollback", "rollback", "exact", 2)


@pytest.mark.parametrize(
    ("restorable", "first", "steps"),
    # t_u of d is 4: what lies at or after it holds d. Rounds without d: a, b and from round 2 c, 2 + 3 + 1
    [((0, 1, 2, 3, 4), 4, 6), ((0, 2, 4), 3, 12), ((0, 4), 1, 23), ((0,), 1, 23), ((3,), 4, 6)],
)
def test_rollback_begins_at_the_last_state_before_the_client(
    restorable: tuple[int, ...], first: int, steps: int
) -> None:
    here = situation(restorable=restorable, steps={"a": 2, "b": 3, "c": 1})
    plan = planned(Rollback(), ForgetRequest(id="r", client_id="d"), here)
    assert plan.phases == (Restore(first - 1), Rounds(rounds=5 - first, replay=True))
    assert plan.client_steps == steps and plan.fraction == pytest.approx(steps / 23) and plan.from_round == 4


def test_rollback_of_a_client_of_the_first_round_is_retraining() -> None:
    first = ForgetRequest(id="r", client_id="a")
    here = situation(steps={"b": 3, "c": 1, "d": 5})
    rollback, retrain = planned(Rollback(), first, here), planned(Retrain(), first, here)
    assert rollback.phases == retrain.phases and rollback.fraction == retrain.fraction == 1.0


def test_rollback_of_a_client_that_was_never_selected_does_nothing() -> None:
    plan = planned(Rollback(), NEVER, situation())
    assert plan.phases == () and plan.client_steps == 0 and plan.fraction == 0.0 and plan.from_round == 0
    assert plan.guarantee == "exact" and plan.invalidates == () and plan.last_round == 4
    assert status(plan)["global adapter"] == "unaffected"


def test_rollback_goes_as_far_as_training_went_or_as_the_head_where_it_came_later() -> None:
    """After a removal that went on to round 6, what was learned in rounds 5 and 6 is repair, not training."""
    later = situation(head=6)
    assert planned(Rollback(), WHOLE, later).last_round == 4
    more = [*later.records, *(RoundRecord(branch="r/x", round=n, selected=("e",), accepted=("e",)) for n in (5, 6))]
    new = situation(head=6, records=more, restorable=tuple(range(7)), steps={"a": 2, "b": 3})
    plan = planned(Rollback(), ForgetRequest(id="r", client_id="e"), new)
    assert plan.phases == (Restore(4), Rounds(rounds=2, replay=True))


def test_samples_are_rolled_back_with_the_client_in_the_rounds() -> None:
    # c keeps 1 step: round 2 and 3: 6 each, round 4: 11, of 5 + 6 + 6 + 11
    here = situation(steps={"a": 2, "b": 3, "c": 1, "d": 5})
    plan = planned(Rollback(), SOME, here)
    assert plan.phases == (Restore(1), Rounds(rounds=3, replay=True))
    assert plan.client_steps == 23 and plan.fraction == pytest.approx(23 / 28)


def test_removals_go_on_from_where_the_run_stands() -> None:
    here = situation(head=7)
    assert planned(Exclude(recovery_rounds=2), WHOLE, here).phases == (Rounds(rounds=2),)
    visit, recovery = planned(Local(), WHOLE, here).phases
    assert (visit.kind, recovery.kind) == ("visit", "rounds")
    numbered = plan_values(planned(Local(), WHOLE, here))["phases"]
    assert [(phase["first"], phase["last"]) for phase in numbered] == [(8, 8), (9, 10)]
    assert planned(Retrain(), WHOLE, here).last_round == 4
    assert planned(Exclude(recovery_rounds=0), WHOLE, here).last_round == 7
    assert planned(Local(recovery_rounds=0), WHOLE, here).last_round == 8


# Before a run, t_u is what the keyed selection will make of it


def test_t_u_is_predicted_where_nothing_was_run() -> None:
    for seed in range(5):
        here = situation(records=(), joins={"c": 2}, clients_per_round=2, seed=seed, rounds=6, head=6)
        chosen = [select_clients(population(["a", "b", "c", "d"], {"c": 2}, n), 2, seed, n) for n in range(1, 7)]
        expected = next((n for n, selected in enumerate(chosen, start=1) if "c" in selected), 0)
        assert [planned(r, WHOLE, here).from_round for r in EVERY] == [expected] * 4


def test_the_prediction_for_samples_counts_the_client_once() -> None:
    """The client stays among those that remain, so it must not be drawn for twice."""
    steps = {"a": 2, "b": 3, "c": 1, "d": 5}
    for seed in range(5):
        here = situation(records=(), joins={}, clients_per_round=1, seed=seed, rounds=8, head=8, steps=steps)
        chosen = [select_clients(("a", "b", "c", "d"), 1, seed, n) for n in range(1, 9)]
        expected = next((n for n, selected in enumerate(chosen, start=1) if "c" in selected), 0)
        assert planned(Rollback(), SOME, here).from_round == expected


def test_a_prediction_is_not_made_where_there_are_records() -> None:
    """Who was asked is a fact then, whatever the selection would make of it today."""
    alone = [RoundRecord(branch="main", round=n, selected=("a",), accepted=("a",)) for n in range(1, 5)]
    assert planned(Rollback(), WHOLE, situation(records=alone)).from_round == 0


def test_samples_keep_the_client_in_the_rounds() -> None:
    # c stays with its other rows, 1 step: rounds 1..4 cost 5, 6, 6, 11 = 28; rounds 5 and 6: 11 each
    here = situation(steps={"a": 2, "b": 3, "c": 1, "d": 5})
    assert planned(Retrain(), SOME, here).client_steps == 28
    plan = planned(Exclude(), SOME, here)
    assert plan.client_steps == 22 and plan.fraction == pytest.approx(22 / 28)


def test_cost_follows_the_keyed_selection() -> None:
    steps = {"a": 1, "b": 10, "d": 100}
    here = situation(steps=steps, joins={}, clients_per_round=1, seed=3)
    chosen = [select_clients(sorted(steps), 1, 3, number)[0] for number in range(1, 5)]
    assert planned(Retrain(), WHOLE, here).client_steps == sum(steps[c] for c in chosen)
    assert len(set(chosen)) > 1


def test_a_client_that_was_never_selected_has_no_first_round() -> None:
    for removal in EVERY:
        plan = planned(removal, NEVER, situation())
        assert plan.from_round == 0 and plan.invalidates == ()


def test_fraction_of_a_federation_without_steps_is_finite() -> None:
    assert planned(Exclude(), WHOLE, situation(steps={"d": 5}, joins={"d": 5})).fraction == 10.0


def test_graddiff_on_a_whole_client_needs_public_rows() -> None:
    removal = Local(objective="grad_diff")
    with pytest.raises(PlanRefusedError, match=r"needs rows to keep, but c leaves altogether.*data\.public") as caught:
        planned(removal, WHOLE, situation())
    assert caught.value.exit_code == 5
    proposed = re.findall(r"such as (\w+) or (\w+)$", str(caught.value))[0]
    assert all(planned(Local(objective=name), WHOLE, situation()).phases for name in proposed)


@pytest.mark.parametrize("objective", ["grad_diff", "npo", "simnpo"])
def test_public_rows_anchor_through_kl(objective: str) -> None:
    phase = planned(Local(objective=objective), WHOLE, situation(available=WITH_PUBLIC)).phases[0]
    assert isinstance(phase, Visit)
    assert phase.anchor == "public" and phase.parameters == {"retain_loss": "kl"}


@pytest.mark.parametrize("key", ["retain_loss", "retain-loss"])
def test_a_chosen_retain_loss_stays(key: str) -> None:
    from oblivion.objectives.terms import objective_from

    phase = planned(Local(parameters={key: "nll"}), WHOLE, situation(available=WITH_PUBLIC)).phases[0]
    assert isinstance(phase, Visit) and phase.anchor == "public"
    assert "retain.reference.logits" in objective_from("simnpo", {"retain_loss": "kl"}).needs
    assert "retain.reference.logits" not in objective_from("simnpo", phase.parameters).needs


@pytest.mark.parametrize("objective", ["grad_diff", "npo"])
@pytest.mark.parametrize("public", [False, True])
def test_samples_are_anchored_by_the_clients_own_other_rows(objective: str, public: bool) -> None:
    phase = planned(
        Local(objective=objective), SOME, situation(available=WITH_PUBLIC if public else frozenset({"target_online"}))
    ).phases[0]
    assert isinstance(phase, Visit) and phase.anchor == "retained" and phase.parameters == {}


def test_gradient_ascent_takes_no_anchor() -> None:
    for request in (WHOLE, SOME):
        phase = planned(Local(objective="grad_ascent"), request, situation(available=WITH_PUBLIC)).phases[0]
        assert isinstance(phase, Visit) and phase.anchor == "none"


@pytest.mark.parametrize(("objective", "parameters"), [("lm", {}), ("nop", {}), ("npo", {"betta": 1})])
def test_learning_and_unknown_objectives_are_refused(objective: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        removal_from("local", {"objective": objective, **parameters})
    assert caught.value.exit_code == 2 and objective in str(caught.value)


ITEMS = [
    "global adapter",
    "residual beside the base model",
    "server rule state",
    "aggregation weights, population count",
    "learning-rate schedule",
    "clients that the rule needs",
    "selection",
    "other clients' later updates",
    "control variates of other clients",
    "gate state",
    "adapter initialisation, ranks, base model",
    "model selection",
    "stored contributions, states, adapters, keys",
    "coming back",
]


def test_every_method_fills_in_the_same_checklist() -> None:
    for aggregator in (FedAvg(), FedAdam(), KeepsOfClients()):
        for request in (WHOLE, SOME, NEVER):
            plans = [planned(removal, request, situation(aggregator=aggregator)) for removal in EVERY]
            assert [[one.item for one in plan.checklist] for plan in plans] == [[*ITEMS, "privacy budget"]] * 4
            assert all(one.why for plan in plans for one in plan.checklist)


def test_what_every_method_does_alike() -> None:
    for removal in EVERY:
        found = status(planned(removal, WHOLE, situation()))
        assert [found[item] for item in ("gate state", "coming back", "aggregation weights, population count")] == [
            "cleaned"
        ] * 3
        assert found["stored contributions, states, adapters, keys"] == "cleaned"
        for item in ("selection", "model selection", "adapter initialisation, ranks, base model"):
            assert found[item] == "unaffected"


def test_rule_state_is_named_and_cleaned_where_it_is() -> None:
    here = situation(aggregator=FedAdam())
    expected = {"retrain": "cleaned", "rollback": "cleaned", "exclude": "not covered", "local": "cleaned"}
    for removal in EVERY:
        plan = planned(removal, WHOLE, here)
        item = next(one for one in plan.checklist if one.item == "server rule state")
        assert item.status == expected[plan.method]
        assert "first moment m" in item.why and "second moment v" in item.why
        plain = next(one for one in planned(removal, WHOLE, situation()).checklist if one.item == "server rule state")
        assert plain.status == "unaffected"


def test_approximate_methods_do_not_claim_the_others_later_updates() -> None:
    for removal in EVERY:
        claimed = "cleaned" if removal in EXACT else "not covered"
        assert status(planned(removal, WHOLE, situation()))["other clients' later updates"] == claimed


def test_an_exact_removal_leaves_nothing_uncovered() -> None:
    for aggregator in (FedAvg(), FedAdam(), KeepsOfClients()):
        for removal in EXACT:
            for request in (WHOLE, SOME, NEVER):
                plan = planned(removal, request, situation(aggregator=aggregator))
                assert plan.guarantee == "exact" and "not covered" not in status(plan).values()


def test_control_variates_are_computed_again_reset_or_named_as_not_covered() -> None:
    item = "control variates of other clients"
    for removal in EVERY:
        expected = "not covered" if isinstance(removal, Exclude) else "cleaned"
        assert status(planned(removal, WHOLE, situation(aggregator=KeepsOfClients())))[item] == expected
        assert status(planned(removal, WHOLE, situation()))[item] == "unaffected"


def test_what_still_holds_the_data_is_named() -> None:
    for removal in EVERY:
        named = "; ".join(planned(removal, WHOLE, situation(head=6)).invalidates)
        assert "adapters of the present model" in named and "rounds 2 to 6 in the ledger" in named
        assert "the client's keys" in named


def test_a_removal_without_what_it_requires_is_refused() -> None:
    nobody = situation(available=frozenset())
    for method, removal, lacks in (("local", Local(), "target_online"), ("rollback", Rollback(), "checkpoints")):
        with pytest.raises(PlanRefusedError, match=f"{method} requires {lacks}, which this federation does not") as e:
            plan_removal(removal, method, WHOLE, nobody)
        assert e.value.exit_code == 5
        assert plan_removal(removal, method, WHOLE, situation()).checklist[-1].item == "privacy budget"
    assert plan_removal(Retrain(), "retrain", WHOLE, nobody).guarantee == "exact"


def test_removals_take_their_settings_from_their_table() -> None:
    table = {"objective": "simnpo", "beta": 2.0, "scale": 0.5, "max-norm": 7.0, "recovery_rounds": 3}
    made = Local(objective="simnpo", parameters={"beta": 2.0}, scale=0.5, max_norm=7.0, recovery_rounds=3)
    assert removal_from("local", table) == removal_from("gentle", {**table, "method": "local"}) == made
    assert removal_from("exclude", {"recovery-rounds": 3}) == Exclude(recovery_rounds=3)
    assert removal_from("retrain", {}) == Retrain() and removal_from("rollback", {}) == Rollback()
    with pytest.raises(ValueError, match="from 0 to"):
        Exclude(recovery_rounds=-1)


@pytest.mark.parametrize(
    ("name", "table", "words"),
    [
        ("retrian", {}, "forget.methods.retrian: no removal has this name; did you mean 'retrain'"),
        ("gentle", {"method": "loca"}, "forget.methods.gentle.method = 'loca': unknown removal; did you mean 'local'"),
        ("gentle", {"method": 3}, "unknown removal"),
        ("exclude", {"method": "local"}, "'exclude' is another removal"),
        (
            "rollback",
            {"delta": 0.1},
            "no parameter 'delta': the objective 'simnpo' has it, and 'rollback' trains with no objective",
        ),
        ("exclude", {"recovry-rounds": 1}, "no parameter 'recovry_rounds'; did you mean 'recovery_rounds'"),
        (
            "local",
            {"delta": 0.1},
            "'local' with 'npo' has no parameter 'delta': the objective 'simnpo' has it, and 'npo' does not",
        ),
        ("local", {"parameters": {"beta": 1}}, "has no parameter 'parameters'"),
        ("local", {"objective": "nop"}, "forget.methods.local.objective = 'nop': unknown objective; did you mean"),
        ("local", {"scale": -1.0}, "scale = -1.0"),
        ("local", {"beta": "x"}, "forget.methods.local: 'npo' with beta = 'x' is not allowed"),
        ("local", {"max-norm": 1.0, "max_norm": 2.0}, "'max_norm' is set twice"),
    ],
)
def test_a_wrong_table_is_refused_in_one_line(name: str, table: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_methods({name: table})
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_two_tables_with_one_meaning_are_refused() -> None:
    check_methods({"local": {}, "gentle": {"method": "local", "beta": 0.2}, "exclude": {}})
    with pytest.raises(ConfigError, match=r"forget\.methods\.local and forget\.methods\.same have one meaning"):
        check_methods({"local": {"beta": 0.1}, "same": {"method": "local", "objective": "npo", "beta": 0.1}})


def test_the_name_of_a_table_is_that_of_the_trial() -> None:
    table = {"method": "local", "objective": "simnpo", "local-epochs": 4}
    plan = plan_removal(removal_from("gentle", table), "local", WHOLE, situation(), "gentle")
    assert (plan.name, plan.method, plan.label) == ("gentle", "local", "gentle: local simnpo + 2 rounds")


def test_requirements_are_known_words() -> None:
    known = {"target_online", "updates", "norms", "checkpoints", "public_data"}
    assert all(removals.get(name).requires <= known for name in removals.names())
    assert removals.get("local").requires == {"target_online"} and not removals.get("retrain").requires
    assert removals.get("rollback").requires == {"checkpoints"} and not removals.get("exclude").requires


def test_the_control_variate_of_who_leaves_is_dropped_but_not_that_of_some_samples() -> None:
    here = situation(aggregator=Scaffold())
    assert status(planned(Exclude(), WHOLE, here))["server rule state"] == "cleaned"
    assert status(planned(Exclude(), SOME, here))["server rule state"] == "not covered"
    assert status(planned(Rollback(), SOME, here))["server rule state"] == "cleaned"


def test_the_residual_of_a_scheme_is_computed_again_or_named_as_not_covered() -> None:
    item = "residual beside the base model"
    for removal in EVERY:
        kept = next(one for one in planned(removal, WHOLE, situation(scheme=FedEx())).checklist if one.item == item)
        assert kept.status == ("cleaned" if removal in EXACT else "not covered") and "averaging A and B" in kept.why
        assert status(planned(removal, WHOLE, situation()))[item] == "unaffected"


def test_a_rule_with_too_few_clients_left_refuses_every_removal_with_rounds_of_its_own() -> None:
    # without c: a and b in rounds 1 to 3, and d from round 4 on; the median of f = 1 needs 3
    here = situation(aggregator=TrimmedMean(trim=1))
    for method, removal, round in (("retrain", Retrain(), 1), ("rollback", Rollback(), 2)):
        with pytest.raises(
            PlanRefusedError, match=rf"{method}: TrimmedMean\(trim=1\) needs at least 3 .*{round} has 2"
        ):
            plan_removal(removal, method, WHOLE, here)
    assert plan_removal(Exclude(), "exclude", WHOLE, here).guarantee == "none", "rounds 5 and 6 have a, b and d"
    with pytest.raises(PlanRefusedError, match="without c round 5 has 3"):
        plan_removal(Exclude(), "exclude", WHOLE, situation(aggregator=Krum(byzantine=1)))
    assert plan_removal(Local(recovery_rounds=0), "local", WHOLE, situation(aggregator=Krum(byzantine=1))).client_steps


def test_clients_that_were_unavailable_do_not_count_in_a_replay() -> None:
    here = situation(aggregator=Median(), steps={"a": 2, "b": 3, "d": 5})
    assert plan_removal(Rollback(), "rollback", WHOLE, here).guarantee == "exact"
    lost = [replace(record, failed={"b": "no reply"}) if record.round == 3 else record for record in here.records]
    krum = situation(aggregator=TrimmedMean(trim=1), records=lost, joins={"c": 2})
    with pytest.raises(PlanRefusedError, match="round 3 has 2"):
        plan_removal(Rollback(), "rollback", WHOLE, krum)
