"""Losses against what OpenUnlearning computes on fixed inputs (locuslab/open-unlearning, commit d3d7cf9).

`fixtures/loss_inputs.safetensors` holds padded batches and logits (numbers only, B = 4, V = 128), and
`fixtures/losses.json` the values of their code in fp32 and of the formulas in fp64, evaluated independently.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from oblivion.objectives.grad_ascent import GradAscent
from oblivion.objectives.grad_diff import GradDiff
from oblivion.objectives.lm import LanguageModel
from oblivion.objectives.npo import NPO
from oblivion.objectives.simnpo import SimNPO
from oblivion.objectives.terms import Answers, Objective, Term

FIXTURES = Path(__file__).parent / "fixtures"
GOLDEN = json.loads((FIXTURES / "losses.json").read_text(encoding="utf-8"))
PEERS, FORMULA = GOLDEN["open_unlearning"], GOLDEN["formula_float64"]
KL_CORRECTED = FORMULA["KL_labelled_positions(corrected)"]["value"]
INPUTS = load_file(FIXTURES / "loss_inputs.safetensors")


def labelled(role: str, logits: torch.Tensor) -> tuple[Answers, torch.Tensor]:
    """Take the labelled positions out of a padded batch: the logits at t - 1 predict the label at t."""
    labels = INPUTS[f"{role}.labels"]
    rows, positions = (labels[:, 1:] != -100).nonzero(as_tuple=True)
    return Answers(labels[rows, positions + 1], rows, labels.shape[0]), logits[rows, positions]


def run(objective: Objective, dtype: torch.dtype, retain: bool = True) -> tuple[float, Mapping[str, float]]:
    """Total loss, and the norm of its gradient in the padded logits of each role."""
    leaves = {r: INPUTS[f"{r}.logits_current"].clone().to(dtype).requires_grad_() for r in ("forget", "retain")}
    outputs, batch = {}, {}
    for role in ("forget", "retain") if retain else ("forget",):
        batch[role], logits = labelled(role, leaves[role])
        reference = labelled(role, INPUTS[f"{role}.logits_reference"].to(dtype))[1]
        outputs[role] = {"logits": logits, "reference.logits": reference}
    terms = objective.loss(outputs, batch)
    total = torch.stack([reduced(term) for term in terms.values()]).sum()
    total.backward()
    return float(total.detach()), {r: 0.0 if x.grad is None else float(x.grad.norm()) for r, x in leaves.items()}


def reduced(term: Term) -> torch.Tensor:
    return term.weight * term.sums.sum() / term.counts.sum()


PEER_CASES = [
    ("GradAscent", GradAscent(), False),
    ("GradDiff_g1_a1_NLL", GradDiff(), True),
    ("NPO_beta0.1_forget_only", NPO(beta=0.1), False),
    ("NPO_beta0.1_g1_a1_NLL", NPO(beta=0.1), True),
    ("SimNPO_b4.5_d0.0_forget_only", SimNPO(beta=4.5), False),
    ("SimNPO_b4.5_d0.0_g0.125_a1_NLL", SimNPO(beta=4.5, forget_weight=0.125), True),
]


@pytest.mark.parametrize(("key", "objective", "retain"), PEER_CASES, ids=[case[0] for case in PEER_CASES])
def test_values_and_gradients_of_open_unlearning(key: str, objective: Objective, retain: bool) -> None:
    value, gradients = run(objective, torch.float32, retain)
    golden = PEERS[key]
    assert value == pytest.approx(golden["value"], rel=1e-5, abs=1e-7)
    assert gradients["forget"] == pytest.approx(golden["grad_norm_forget"], rel=1e-5)
    assert gradients["retain"] == pytest.approx(golden.get("grad_norm_retain", 0.0), rel=1e-5)


def test_learning_is_their_retain_loss() -> None:
    value, gradients = run(LanguageModel(), torch.float32)
    golden = PEERS["retain_NLL_only(GradDiff gamma=0)"]
    assert value == pytest.approx(golden["value"], rel=1e-6)
    assert gradients == {"forget": 0.0, "retain": pytest.approx(golden["grad_norm_retain"], rel=1e-5)}


FORMULA_CASES = [
    (-FORMULA["token_mean_NLL_forget"]["value"], GradAscent(), False),
    (FORMULA["token_mean_NLL_retain"]["value"], LanguageModel(), True),
    (FORMULA["NPO_beta0.1"]["value"], NPO(), False),
    (FORMULA["SimNPO_b4.5_d0.0"]["value"], SimNPO(), False),
    (KL_CORRECTED - FORMULA["token_mean_NLL_forget"]["value"], GradDiff(retain_loss="kl"), True),
    (KL_CORRECTED + FORMULA["NPO_beta0.1"]["value"], NPO(retain_loss="kl"), True),
    (KL_CORRECTED, SimNPO(forget_weight=0.0, retain_loss="kl"), True),
]


@pytest.mark.parametrize(("expected", "objective", "retain"), FORMULA_CASES)
def test_formulas_in_double_precision(expected: float, objective: Objective, retain: bool) -> None:
    value, _ = run(objective, torch.float64, retain)
    assert value == pytest.approx(expected, rel=1e-10, abs=1e-13)


def test_the_kl_is_the_corrected_one_and_scales_to_theirs() -> None:
    # Theirs is the sum over all B * L positions of the padded batch divided by B * L. Summed over labelled
    # positions alone, ours must be smaller as a sum, and is another number as a mean.
    theirs = PEERS["GradDiff_g1_a1_KL"]["value"] + FORMULA["token_mean_NLL_forget"]["value"]
    assert theirs == pytest.approx(FORMULA["KL_all_B*T_positions"]["value"], rel=1e-5)
    labels = INPUTS["retain.labels"]
    count = int((labels[:, 1:] != -100).sum())
    assert KL_CORRECTED * count < theirs * labels.numel()
    assert abs(KL_CORRECTED - theirs) > 0.01


def test_variants_that_we_do_not_compute_are_other_numbers() -> None:
    # A mean over tokens in NPO, or a mean of sequence means in gradient ascent, would be seen by these tests.
    assert abs(FORMULA["NPO_beta0.1_length_normalised"]["value"] - FORMULA["NPO_beta0.1"]["value"]) > 0.1
    means = FORMULA["sequence_mean_NLL_forget"]["value"], FORMULA["token_mean_NLL_forget"]["value"]
    assert abs(means[0] - means[1]) > 0.01
