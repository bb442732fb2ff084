"""DPO, RMU, SHRED and BLUR-NPO: values worked out by hand, limits, and clients together as one by one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_fused import INFO, SETTINGS, Double, farthest, start_of
from test_needs import tasks
from test_objectives import ANSWERS, CURRENT, REFERENCE, close

from oblivion.config import LoraConfig, ModelConfig
from oblivion.errors import ConfigError
from oblivion.models.loading import load_base
from oblivion.models.resident import ResidentModel
from oblivion.objectives.blur_npo import BlurNPO
from oblivion.objectives.dpo import DPO
from oblivion.objectives.npo import NPO
from oblivion.objectives.rmu import RMU
from oblivion.objectives.shred import Shred
from oblivion.objectives.terms import Answers, CombinesGradients, objective_from
from oblivion.training.fused import train_fused
from oblivion.training.local import LocalTask, train_client


@pytest.fixture(scope="module")
def double(micro_model: Path) -> ResidentModel:
    made = Double(load_base(ModelConfig(name=str(micro_model))), LoraConfig(rank=4, alpha=8))
    made.model.double()
    return made


BOTH = {"logits": CURRENT, "reference.logits": REFERENCE}


class TestDPO:
    def test_by_hand(self) -> None:
        # The answers lost ln 2 and 2 ln 2 of likelihood (see the test of NPO). The alternates are the same rows with
        # model and reference exchanged, so they gained ln 2 and 2 ln 2. With beta = 1/2 the margins are ln 2 and
        # 2 ln 2: -(2/beta) log sigmoid = 4 ln(3/2) and 4 ln(5/4).
        other = {"logits": REFERENCE, "reference.logits": CURRENT}
        terms = DPO(beta=0.5).loss({"forget": BOTH, "alternate": other}, {"forget": ANSWERS, "alternate": ANSWERS})
        assert set(terms) == {"forget"}
        close(terms["forget"].sums, 4 * math.log(3 / 2), 4 * math.log(5 / 4))
        close(terms["forget"].counts, 1, 1)

    def test_is_npo_where_the_alternate_is_as_likely_as_before(self) -> None:
        same = {"logits": REFERENCE, "reference.logits": REFERENCE}
        terms = DPO(beta=0.3).loss({"forget": BOTH, "alternate": same}, {"forget": ANSWERS, "alternate": ANSWERS})
        npo = NPO(beta=0.3).loss({"forget": BOTH}, {"forget": ANSWERS})
        torch.testing.assert_close(terms["forget"].sums, npo["forget"].sums, rtol=1e-12, atol=0)

    def test_gradients_go_up_for_the_alternate_and_down_for_the_answer(self) -> None:
        answer, other = CURRENT.clone().requires_grad_(), CURRENT.clone().requires_grad_()
        outputs = {
            "forget": {"logits": answer, "reference.logits": CURRENT},
            "alternate": {"logits": other, "reference.logits": CURRENT},
        }
        DPO().loss(outputs, {"forget": ANSWERS, "alternate": ANSWERS})["forget"].sums.sum().backward()
        torch.testing.assert_close(answer.grad, -other.grad, rtol=1e-12, atol=0)
        assert float(answer.grad[0, 0]) > 0 > float(other.grad[0, 0]), "label 0 of the first token"


class TestRMU:
    def test_by_hand(self) -> None:
        objective = RMU(layer=1, c=2.0, retain_weight=3.0)
        kind = "hidden:1"
        zeros, ones = torch.zeros(3, 4, dtype=torch.float64), torch.ones(3, 4, dtype=torch.float64)
        outputs = {"forget": {kind: zeros}, "retain": {kind: ones, f"reference.{kind}": -ones}}
        terms = objective.loss(outputs, {"forget": ANSWERS, "retain": ANSWERS})
        # From zero to a vector of length 2 in 4 dimensions the mean square is 4/4 a token; from 1 to -1 it is 4.
        torch.testing.assert_close(terms["forget"].sums, torch.tensor([2.0, 1.0]).double(), rtol=1e-6, atol=0)
        close(terms["retain"].sums, 8, 4)
        close(terms["retain"].counts, 2, 1)
        assert terms["retain"].weight == 3.0

    def test_is_zero_at_its_goal_which_all_clients_share(self) -> None:
        from oblivion.seeding import torch_generator

        u = torch.rand(4, generator=torch_generator(0, "rmu"))
        goal = (6.5 * u / u.norm()).double().expand(3, 4)
        assert bool((goal > 0).all())
        terms = RMU(layer=0).loss({"forget": {"hidden:0": goal}}, {"forget": ANSWERS})
        close(terms["forget"].sums, 0, 0)
        other = RMU(layer=0, seed=1).loss({"forget": {"hidden:0": goal}}, {"forget": ANSWERS})
        assert float(other["forget"].sums.sum()) > 1

    def test_a_layer_that_is_not_there_is_refused(self, double: ResidentModel) -> None:
        from oblivion.training.outputs import check_needs

        with pytest.raises(ConfigError, match=r"objective 'rmu' needs 'hidden:40', which this model does not have"):
            check_needs("rmu", objective_from("rmu", {"layer": 40}), double.task, double.model, residual=False)


class TestShred:
    def test_by_hand(self) -> None:
        # Labels 0, 1, 1 with the reference's probabilities 1/2, 1/4, 1/8. With a share of a half the second token of
        # the first sequence and the only one of the second are forget positions, with targets (1 - 1/10, 1/10).
        # The model is the reference: KL((9/10, 1/10) || (3/4, 1/4)) and KL((9/10, 1/10) || (7/8, 1/8)).
        both = {"logits": CURRENT, "reference.logits": CURRENT}
        terms = Shred(share=0.5, demoted=0.1).loss({"forget": both}, {"forget": ANSWERS})
        first = 0.9 * math.log(0.9 / 0.75) + 0.1 * math.log(0.1 / 0.25)
        second = 0.9 * math.log(0.9 / 0.875) + 0.1 * math.log(0.1 / 0.125)
        close(terms["forget"].sums, first, second)
        close(terms["forget"].counts, 2, 1)

    def test_what_is_unlikely_already_is_not_made_likely(self) -> None:
        both = {"logits": CURRENT, "reference.logits": CURRENT}
        terms = Shred(share=1.0, demoted=0.9).loss({"forget": both}, {"forget": ANSWERS})
        close(terms["forget"].sums, 0, 0)

    @pytest.mark.parametrize(("share", "chosen"), [(0.01, 1), (0.15, 3), (0.5, 10), (1.0, 20)])
    def test_the_share_is_rounded_up_in_every_sequence(self, share: float, chosen: int) -> None:
        p = torch.rand(40, generator=torch.Generator().manual_seed(0)).double() * 0.4 + 0.3
        answers = Answers(torch.zeros(40, dtype=torch.long), torch.arange(40) % 2, 2)
        logits = torch.stack([p, 1 - p], -1).log()
        leaf = logits.clone().requires_grad_()
        terms = Shred(share=share).loss({"forget": {"logits": leaf, "reference.logits": logits}}, {"forget": answers})
        terms["forget"].sums.sum().backward()
        moved = leaf.grad.abs().sum(1) > 1e-9
        for row in (0, 1):
            own = answers.rows == row
            assert int(moved[own].sum()) == chosen
            assert moved[own].equal(p[own] <= p[own].sort().values[chosen - 1]), "the least likely ones"

    def test_a_certain_token_keeps_the_loss_finite(self) -> None:
        certain = torch.tensor([[1e4, -1e4]] * 3)
        leaf = certain.clone().requires_grad_()
        answers = Answers(torch.tensor([0, 0, 0]), torch.tensor([0, 0, 1]), 2)
        term = Shred().loss({"forget": {"logits": leaf, "reference.logits": certain}}, {"forget": answers})["forget"]
        term.sums.sum().backward()
        assert bool(term.sums.isfinite().all()) and bool(leaf.grad.isfinite().all())

    @pytest.mark.parametrize("parameters", [{"share": 0}, {"share": 1.5}, {"demoted": 1.0}, {"demoted": 0}])
    def test_wrong_parameters(self, parameters: dict[str, float]) -> None:
        with pytest.raises(ConfigError, match=r"share|demoted"):
            objective_from("shred", parameters)


class TestBlur:
    def test_by_hand(self) -> None:
        # g_f = (2, 0), g_r = (3, 4): the retain gradient without its part along the forget gradient is (0, 4), and
        # gamma of the forget gradient is (1, 0) for a half. The second client has no forget gradient.
        forget, retain = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([[3.0, 4.0], [3.0, 4.0]])
        step = BlurNPO(gamma=0.5).combine_gradients(forget, retain)
        torch.testing.assert_close(step, torch.tensor([[1.0, 4.0], [3.0, 4.0]]))

    def test_keeping_never_changes_how_fast_is_forgotten(self) -> None:
        generator = torch.Generator().manual_seed(0)
        forget, retain = (torch.randn(5, 30, generator=generator).double() for _ in range(2))
        step = BlurNPO().combine_gradients(forget, retain)
        torch.testing.assert_close((step * forget).sum(1), forget.square().sum(1), rtol=1e-10, atol=0)

    def test_it_is_npos_loss_and_must_have_rows_to_keep(self) -> None:
        outputs, batch = {"forget": BOTH, "retain": BOTH}, {"forget": ANSWERS, "retain": ANSWERS}
        for role, term in BlurNPO(beta=0.3).loss(outputs, batch).items():
            assert torch.equal(term.sums, NPO(beta=0.3).loss(outputs, batch)[role].sums)
        assert isinstance(BlurNPO(), CombinesGradients) and not isinstance(NPO(), CombinesGradients)
        with pytest.raises(ValueError, match="BlurNPO needs retain rows"):
            BlurNPO().loss({"forget": BOTH}, {"forget": ANSWERS})

    def test_a_step_is_the_combination(self, double: ResidentModel) -> None:
        start, settings = start_of(double), SETTINGS["sgd"].model_copy(update={"batch_size": 16, "local_epochs": 1})
        settings = settings.model_copy(update={"clip_norm": 1e9})
        given = tasks()[0].rows
        task = LocalTask(client_id="c", rows={"forget": given["forget"], "retain": given["retain"]})

        def flat(objective: Any) -> torch.Tensor:
            delta = train_client(double, start, task, objective, settings, INFO).delta
            return torch.cat([delta[name].flatten() for name in sorted(delta)])[None].double()

        forget, retain = flat(NPO(retain_weight=0.0)), flat(NPO(forget_weight=0.0))
        expected = BlurNPO().combine_gradients(forget, retain)
        torch.testing.assert_close(flat(BlurNPO()), expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("settings", ["sgd", "accumulation"])
@pytest.mark.parametrize("name", ["dpo", "rmu", "shred", "blur_npo"])
def test_together_as_one_by_one(double: ResidentModel, name: str, settings: str) -> None:
    parameters: Any = {"rmu": {"layer": 1}, "shred": {"demoted": 1e-4}}.get(name, {})
    objective, start = objective_from(name, parameters), start_of(double)
    roles = {"dpo": ("forget", "alternate"), "shred": ("forget",)}.get(name, ("forget", "retain"))
    given = [LocalTask(client_id=t.client_id, rows={role: t.rows[role] for role in roles}) for t in tasks()]
    alone = [train_client(double, start, task, objective, SETTINGS[settings], INFO) for task in given]
    together = train_fused(double, start, given, objective, SETTINGS[settings], INFO, 3)
    assert farthest(alone, together) < (1e-10 if settings == "sgd" else 1e-9), "AdamW's steps are rounded to fp32"
    assert max(float(tensor.abs().max()) for update in together for tensor in update.delta.values()) > 1e-7
    for one, other in zip(alone, together, strict=True):
        assert one.metrics["tokens"] == other.metrics["tokens"]
        assert one.metrics["loss"] == pytest.approx(other.metrics["loss"], abs=1e-9)
