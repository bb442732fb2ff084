"""Objectives: values worked out by hand, limits, what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from oblivion.errors import ConfigError
from oblivion.objectives import objectives
from oblivion.objectives.grad_ascent import GradAscent
from oblivion.objectives.grad_diff import GradDiff
from oblivion.objectives.lm import LanguageModel
from oblivion.objectives.npo import NPO
from oblivion.objectives.retain import token_kl
from oblivion.objectives.simnpo import SimNPO
from oblivion.objectives.terms import Answers, objective_from

# Two sequences over a vocabulary of two: the first has labels 0, 1, the second has label 1.
ANSWERS = Answers(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 2)


def logits_of(*probabilities: float) -> torch.Tensor:
    """Logits whose softmax gives token 0 these probabilities; the logs of probabilities are such logits."""
    p = torch.tensor(probabilities, dtype=torch.float64)
    return torch.stack([p, 1 - p], dim=-1).log()


# p(0) per token: the labels 0, 1, 1 then have probabilities 1/2, 1/4, 1/8,
# so the NLLs are ln 2, 2 ln 2, 3 ln 2: 3 ln 2 and 3 ln 2 per sequence, over 2 and 1 tokens.
CURRENT = logits_of(1 / 2, 3 / 4, 7 / 8)
# Probabilities of the labels 1/2, 1/2, 1/2: NLLs 2 ln 2 and ln 2 per sequence.
REFERENCE = logits_of(1 / 2, 1 / 2, 1 / 2)
LN2 = math.log(2)

WITH_RETAIN = [GradDiff, NPO, SimNPO]
EVERY = [LanguageModel, GradAscent, *WITH_RETAIN]


def close(tensor: torch.Tensor, *expected: float) -> None:
    torch.testing.assert_close(tensor, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def loss_of(objective: Any, outputs: Any, batch: Any, reference: Any) -> Any:
    """The terms of an objective, from the logits of the model and of the reference by role."""
    known = {role: {"logits": logits} for role, logits in outputs.items()}
    for role in known.keys() & reference.keys():
        known[role]["reference.logits"] = reference[role]
    return objective.loss(known, batch)


def reduce(term: object) -> float:
    return float((term.weight * term.sums.sum() / term.counts.sum()).detach())  # type: ignore[attr-defined]


def test_lm_is_the_nll_by_hand() -> None:
    terms = loss_of(LanguageModel(), {"retain": CURRENT}, {"retain": ANSWERS}, {})
    assert set(terms) == {"retain"}
    close(terms["retain"].sums, 3 * LN2, 3 * LN2)
    close(terms["retain"].counts, 2, 1)
    assert reduce(terms["retain"]) == pytest.approx(2 * LN2, abs=1e-12)  # 6 ln 2 over 3 tokens


def test_grad_ascent_is_minus_the_nll_and_ignores_retain_rows() -> None:
    outputs, batch = {"forget": CURRENT, "retain": CURRENT}, {"forget": ANSWERS, "retain": ANSWERS}
    terms = loss_of(GradAscent(forget_weight=0.5), outputs, batch, {})
    assert set(terms) == {"forget"}
    close(terms["forget"].sums, -3 * LN2, -3 * LN2)
    close(terms["forget"].counts, 2, 1)
    assert reduce(terms["forget"]) == pytest.approx(-LN2, abs=1e-12)


def test_grad_diff_by_hand() -> None:
    outputs, batch = {"forget": CURRENT, "retain": REFERENCE}, {"forget": ANSWERS, "retain": ANSWERS}
    terms = loss_of(GradDiff(forget_weight=3.0, retain_weight=2.0), outputs, batch, {})
    # -3 * (6 ln 2 / 3) + 2 * (3 ln 2 / 3)
    assert reduce(terms["forget"]) == pytest.approx(-6 * LN2, abs=1e-12)
    assert reduce(terms["retain"]) == pytest.approx(2 * LN2, abs=1e-12)


def test_grad_diff_with_kl_by_hand() -> None:
    # Reference (1/2, 1/2), current (p, 1-p): KL = -ln 2 - (ln p + ln(1-p)) / 2.
    # p = 1/2: 0. p = 3/4: -ln 2 - ln(3/16)/2 = ln(2/sqrt 3). p = 7/8: -ln 2 - ln(7/64)/2 = ln(4/sqrt 7).
    close(token_kl(CURRENT, REFERENCE), 0.0, math.log(2 / math.sqrt(3)), math.log(4 / math.sqrt(7)))
    outputs, batch = {"forget": CURRENT, "retain": CURRENT}, {"forget": ANSWERS, "retain": ANSWERS}
    terms = loss_of(GradDiff(retain_loss="kl"), outputs, batch, {"retain": REFERENCE})
    close(terms["retain"].sums, math.log(2 / math.sqrt(3)), math.log(4 / math.sqrt(7)))
    close(terms["retain"].counts, 2, 1)


def test_kl_goes_from_the_reference_to_the_current_model() -> None:
    # KL((1/2,1/2) || (3/4,1/4)) = ln(2/sqrt 3), not KL((3/4,1/4) || (1/2,1/2)) = 3/4 ln(3/2) + 1/4 ln(1/2).
    forward = float(token_kl(logits_of(3 / 4), logits_of(1 / 2)))
    backward = float(token_kl(logits_of(1 / 2), logits_of(3 / 4)))
    assert forward == pytest.approx(math.log(2 / math.sqrt(3)), abs=1e-12)
    assert backward == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-12)


def test_npo_by_hand() -> None:
    # NLL differences to the reference: 3 ln 2 - 2 ln 2 = ln 2, and 3 ln 2 - ln 2 = 2 ln 2. With beta = 1,
    # -2 log sigmoid(x) = 2 ln(1 + e^-x): 2 ln(3/2) and 2 ln(5/4).
    terms = loss_of(NPO(beta=1.0), {"forget": CURRENT}, {"forget": ANSWERS}, {"forget": REFERENCE})
    close(terms["forget"].sums, 2 * math.log(3 / 2), 2 * math.log(5 / 4))
    close(terms["forget"].counts, 1, 1)


def test_npo_at_the_reference_is_two_ln_two_over_beta() -> None:
    terms = loss_of(NPO(beta=0.1), {"forget": CURRENT}, {"forget": ANSWERS}, {"forget": CURRENT})
    close(terms["forget"].sums, 20 * LN2, 20 * LN2)


def test_npo_with_a_small_beta_has_the_gradient_of_ascent_on_sums() -> None:
    def gradient(objective: object) -> torch.Tensor:
        leaf = CURRENT.clone().requires_grad_()
        terms = loss_of(objective, {"forget": leaf}, {"forget": ANSWERS}, {"forget": REFERENCE})  # type: ignore[attr-defined]
        (result,) = torch.autograd.grad(terms["forget"].sums.sum(), leaf)
        return result

    torch.testing.assert_close(gradient(NPO(beta=1e-9)), gradient(GradAscent()), rtol=1e-7, atol=1e-9)


def test_npo_gradient_vanishes_where_a_sequence_is_forgotten() -> None:
    leaf = logits_of(0.5, 0.5, 1 - 1e-12).requires_grad_()  # label 1 of the second sequence has 1e-12
    terms = loss_of(NPO(beta=1.0), {"forget": leaf}, {"forget": ANSWERS}, {"forget": REFERENCE})
    (gradient,) = torch.autograd.grad(terms["forget"].sums.sum(), leaf)
    assert float(gradient[2].abs().max()) < 1e-10
    assert float(gradient[0].abs().max()) > 0.1


def test_no_gradient_flows_into_the_reference() -> None:
    reference = REFERENCE.clone().requires_grad_()
    leaf = CURRENT.clone().requires_grad_()
    outputs, batch = {"forget": leaf, "retain": leaf}, {"forget": ANSWERS, "retain": ANSWERS}
    terms = loss_of(NPO(retain_loss="kl"), outputs, batch, {"forget": reference, "retain": reference})
    sum(term.sums.sum() for term in terms.values()).backward()
    assert reference.grad is None
    assert float(leaf.grad.abs().sum()) > 0


def test_simnpo_by_hand() -> None:
    # Mean NLLs: 3/2 ln 2 and 3 ln 2. With beta = 2 and delta = ln 2: 2 (mNLL - ln 2) = ln 2 and 4 ln 2;
    # -(2/2) log sigmoid gives ln(3/2) and ln(17/16).
    terms = loss_of(SimNPO(beta=2.0, delta=LN2), {"forget": CURRENT}, {"forget": ANSWERS}, {})
    close(terms["forget"].sums, math.log(3 / 2), math.log(17 / 16))
    close(terms["forget"].counts, 1, 1)


def test_simnpo_delta_is_the_papers_gamma_over_beta() -> None:
    beta, gamma = 2.5, 0.75
    terms = loss_of(SimNPO(beta=beta, delta=gamma / beta), {"forget": CURRENT}, {"forget": ANSWERS}, {})
    mean = torch.tensor([1.5 * LN2, 3 * LN2], dtype=torch.float64)
    paper = -(2 / beta) * torch.log(torch.sigmoid(beta * mean - gamma))
    torch.testing.assert_close(terms["forget"].sums, paper, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("objective", [NPO(), SimNPO()])
def test_extreme_logits_stay_finite(objective: NPO | SimNPO) -> None:
    # sigmoid(-1e4) underflows to 0 in fp64, so a log of it would be -inf.
    certain = torch.tensor([[1e5, -1e5]] * 3, dtype=torch.float64)
    for logits, reference in ((certain, -certain), (-certain, certain)):
        leaf = logits.clone().requires_grad_()
        terms = loss_of(objective, {"forget": leaf}, {"forget": ANSWERS}, {"forget": reference})
        terms["forget"].sums.sum().backward()
        assert bool(terms["forget"].sums.isfinite().all())
        assert bool(leaf.grad.isfinite().all())


@pytest.mark.parametrize("objective", [NPO(), SimNPO()])
def test_a_sequence_without_labels_has_no_loss_and_no_count(objective: NPO | SimNPO) -> None:
    padded = Answers(ANSWERS.labels, ANSWERS.rows, 3)
    terms = loss_of(objective, {"forget": CURRENT}, {"forget": padded}, {"forget": REFERENCE})
    plain = loss_of(objective, {"forget": CURRENT}, {"forget": ANSWERS}, {"forget": REFERENCE})
    close(terms["forget"].counts, 1, 1, 0)
    close(terms["forget"].sums, *plain["forget"].sums.tolist(), 0)


@pytest.mark.parametrize("kind", EVERY)
def test_dtype_is_kept(kind: type) -> None:
    for dtype in (torch.float32, torch.float64):
        both = {"forget": CURRENT.to(dtype), "retain": CURRENT.to(dtype)}
        for term in loss_of(kind(), both, {"forget": ANSWERS, "retain": ANSWERS}, both).values():
            assert term.sums.dtype == term.counts.dtype == dtype


@pytest.mark.parametrize("kind", [NPO, SimNPO])
def test_the_retain_term_is_there_if_and_only_if_retain_rows_are(kind: type) -> None:
    references = {"forget": REFERENCE, "retain": REFERENCE}
    batch = {"forget": ANSWERS, "retain": ANSWERS}
    both = loss_of(kind(retain_weight=0.25), {"forget": CURRENT, "retain": CURRENT}, batch, references)
    alone = loss_of(kind(retain_weight=0.25), {"forget": CURRENT}, batch, references)
    assert set(both) == {"forget", "retain"}
    assert set(alone) == {"forget"}
    assert reduce(both["retain"]) == pytest.approx(0.25 * 2 * LN2, abs=1e-12)
    torch.testing.assert_close(both["forget"].sums, alone["forget"].sums, rtol=0, atol=0)


@pytest.mark.parametrize("kind", WITH_RETAIN)
def test_there_is_nothing_to_forget_without_forget_rows(kind: type) -> None:
    with pytest.raises(ValueError, match=f"{kind.__name__} works on rows in role 'forget'"):
        loss_of(kind(), {"retain": CURRENT}, {"retain": ANSWERS}, {"retain": REFERENCE})


def test_what_each_objective_needs() -> None:
    retain, reference = "retain.logits", "forget.reference.logits"
    assert LanguageModel().needs == {"retain", retain}
    assert GradAscent().needs == {"forget.logits"}
    assert GradDiff().needs == {"forget.logits", "retain", retain}
    assert NPO().needs == {"forget.logits", reference, retain}
    assert SimNPO().needs == {"forget.logits", retain}
    assert GradDiff(retain_loss="kl").needs == GradDiff().needs | {"retain.reference.logits"}
    assert NPO(retain_loss="kl").needs == NPO().needs | {"retain.reference.logits"}
    assert SimNPO(retain_loss="kl").needs == SimNPO().needs | {"retain.reference.logits"}
    assert all(isinstance(kind().needs, frozenset) for kind in EVERY)
    assert [kind().accepts_retain for kind in EVERY] == [True, False, True, True, True]
    assert [kind().reduction for kind in EVERY] == ["token", "token", "token", "sequence", "sequence"]


@pytest.mark.parametrize(
    ("objective", "outputs", "message"),
    [
        (LanguageModel(), {"forget": CURRENT}, "role 'retain'"),
        (GradAscent(), {"retain": CURRENT}, "role 'forget'"),
        (GradDiff(), {"forget": CURRENT}, "GradDiff needs retain rows"),
        (NPO(), {"forget": CURRENT}, "NPO needs the output 'reference.logits' for the forget rows"),
        (
            SimNPO(retain_loss="kl"),
            {"forget": CURRENT, "retain": CURRENT},
            "SimNPO with retain_loss 'kl' needs the output 'reference.logits' for the retain rows",
        ),
        (SimNPO(), {}, "role 'forget'"),
    ],
)
def test_what_is_missing_is_said(objective: NPO, outputs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss_of(objective, outputs, {"forget": ANSWERS, "retain": ANSWERS}, {})


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("npo", {"beta": 0}, "beta = 0 is not allowed; it must be above 0 and finite"),
        ("npo", {"beta": -0.1}, "beta = -0.1"),
        ("simnpo", {"beta": math.nan}, "beta = nan"),
        ("simnpo", {"delta": math.inf}, "delta = inf is not allowed; it must be a finite number"),
        ("simnpo", {"delta": "wide"}, "delta = 'wide'"),
        ("grad_ascent", {"forget_weight": -1}, "forget_weight = -1"),
        ("grad_diff", {"retain-weight": True}, "retain_weight = True"),
        ("grad_diff", {"retain_loss": "mse"}, "it must be one of kl, nll"),
        ("npo", {"gamma": 1}, "'npo' has no parameter 'gamma'"),
        ("lm", {"beta": 1}, "'lm' has no parameter 'beta'"),
    ],
)
def test_wrong_parameters_are_config_errors(name: str, parameters: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        objective_from(name, parameters, "forget.methods.local")
    assert "forget.methods.local" in str(caught.value)


def test_good_parameters_are_taken() -> None:
    made = objective_from("simnpo", {"beta": 2, "delta": -0.5, "forget-weight": 0.125, "retain-loss": "kl"})
    assert made == SimNPO(beta=2, delta=-0.5, forget_weight=0.125, retain_loss="kl")
    assert objective_from("npo", {}) == NPO(beta=0.1, forget_weight=1.0, retain_weight=1.0, retain_loss="nll")


def test_every_registered_objective_can_be_made_and_is_frozen() -> None:
    assert objectives.names() == ["blur_npo", "dpo", "grad_ascent", "grad_diff", "lm", "npo", "rmu", "shred", "simnpo"]
    for name in objectives.names():
        made = objective_from(name, {})
        with pytest.raises(AttributeError):
            made.forget_weight = 2.0  # type: ignore[attr-defined]
