"""What a base model draws at random in training is switched off: a visit is a function of seed, round and client."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch

import oblivion as ob
from oblivion.config import LoraConfig, ModelConfig, PrivacyConfig, TrainConfig
from oblivion.data.tokens import TokenRow
from oblivion.models.loading import load_base
from oblivion.models.randomness import ask_for_deterministic_kernels, base_draws, repeats_bits
from oblivion.models.resident import ResidentModel
from oblivion.objectives.terms import objective_from
from oblivion.training.cohort import train_cohort
from oblivion.training.fused import fusible
from oblivion.training.local import LocalTask
from oblivion.types import ClientUpdate, RoundInfo
from simulations import RunResult, simulate

INFO = RoundInfo(branch="main", round=2, rounds=3, population=("a", "b"), seed=5)
SETTINGS = TrainConfig(batch_size=2, local_epochs=1, learning_rate=1e-3)
DRAWS: dict[str, dict[str, float]] = {
    "opt": {"dropout": 0.2, "attention_dropout": 0.2, "layerdrop": 0.3},
    "phi": {"resid_pdrop": 0.2, "embd_pdrop": 0.2, "attention_dropout": 0.2},
    "starcoder2": {"residual_dropout": 0.2, "embedding_dropout": 0.2, "attention_dropout": 0.2},
    "gpt2": {"resid_pdrop": 0.2, "embd_pdrop": 0.2, "attn_pdrop": 0.2},
    "gpt-neox": {"hidden_dropout": 0.2, "attention_dropout": 0.2},
    "llama": {"attention_dropout": 0.2},
    "qwen2": {"attention_dropout": 0.2},
    "mistral": {"attention_dropout": 0.2},
    "gemma": {"attention_dropout": 0.2},
    "falcon": {"hidden_dropout": 0.2, "attention_dropout": 0.2},
    "bloom": {"hidden_dropout": 0.2, "attention_dropout": 0.2},
    "biogpt": {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2, "layerdrop": 0.3},
    "xglm": {"dropout": 0.2, "attention_dropout": 0.2, "activation_dropout": 0.2, "layerdrop": 0.3},
    "gptj": {"resid_pdrop": 0.2, "embd_pdrop": 0.2, "attn_pdrop": 0.2},
    "mixtral": {"attention_dropout": 0.2, "router_jitter_noise": 0.3},
    "phimoe": {"attention_dropout": 0.2, "router_jitter_noise": 0.3, "input_jitter_noise": 0.3},
    "gemma3n": {"attention_dropout": 0.2},
}
LINEAR = {"mixtral": ["q_proj", "v_proj"], "phimoe": ["q_proj", "v_proj"]}
"""Where 'all-linear' would mean the experts, too."""
Make = Callable[..., ResidentModel]


def rows(count: int, seed: int) -> list[TokenRow]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        length = int(torch.randint(6, 20, (1,), generator=generator))
        made.append(TokenRow(tuple(torch.randint(3, 900, (length,), generator=generator).tolist()), 3))
    return made


TASKS = [LocalTask(client_id=name, rows={"retain": rows(count, count)}) for name, count in (("a", 4), ("b", 3))]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    def made(kind: str, dropout: float = 0.0) -> ResidentModel:
        folder = tiny_models.build(kind, tmp_path_factory.mktemp("models") / kind, **DRAWS[kind])
        base = load_base(ModelConfig(name=str(folder), dtype="float32"))
        return ResidentModel(base, LoraConfig(rank=2, alpha=8, dropout=dropout, targets=LINEAR.get(kind, "all-linear")))

    return made


def visits(
    resident: ResidentModel, tasks: list[LocalTask], settings: TrainConfig = SETTINGS, privacy: Any = None
) -> dict[str, ClientUpdate]:
    start = {
        name: 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
        for name, p in resident.parameters.items()
    }
    before = torch.get_rng_state()
    updates, failures = train_cohort(resident, start, tasks, objective_from("lm", {}), settings, INFO, privacy)
    assert not failures and torch.equal(torch.get_rng_state(), before), "nothing is drawn from the process"
    assert not any(module.training for module in resident.model.modules())
    torch.rand(7)  # another process would be elsewhere in its numbers
    return {update.client_id: update for update in updates}


def apart(one: ClientUpdate, other: ClientUpdate) -> float:
    """The distance of two updates in units of the first."""
    flat = [torch.cat([t.flatten() for t in update.delta.values()]).double() for update in (one, other)]
    return float((flat[0] - flat[1]).norm() / flat[0].norm())


@pytest.mark.parametrize("kind", ["opt", "gpt2", "mixtral", *(pytest.param(k, marks=pytest.mark.slow) for k in DRAWS)])
def test_a_visit_is_the_same_twice_alone_and_together(make: Make, kind: str) -> None:
    resident = make(kind)
    assert len(base_draws(resident.base.model)) == len(DRAWS[kind])
    first, again = visits(resident, TASKS), visits(resident, TASKS)
    assert all(apart(first[client], again[client]) == 0.0 for client in "ab")
    for task in TASKS:
        assert apart(visits(resident, [task])[task.client_id], first[task.client_id]) < 2e-2
    frugal = SETTINGS.model_copy(update={"gradient_checkpointing": True})
    for task in TASKS:
        assert apart(first[task.client_id], visits(resident, TASKS, frugal)[task.client_id]) < 1e-3


def test_samples_are_hidden_without_the_base_models_dropout(make: Make) -> None:
    resident, quiet = make("opt"), PrivacyConfig(unit="sample", noise_multiplier=0.0, clip_norm=0.5)
    tasks = [LocalTask(client_id="a", rows=TASKS[0].rows, noise_key=bytes(32))]
    assert fusible(resident) is None
    assert apart(visits(resident, tasks, privacy=quiet)["a"], visits(resident, tasks, privacy=quiet)["a"]) == 0.0


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_dropout_of_the_adapter_stays(make: Make, dropout: float) -> None:
    resident = make("gpt2", dropout)
    visits(resident, TASKS[:1])  # a model that was never used is tried once beforehand
    seen: dict[bool, set[bool]] = {True: set(), False: set()}
    for name, module in resident.model.named_modules():
        if isinstance(module, torch.nn.Dropout):
            own = seen["lora_dropout" in name]
            module.register_forward_hook(lambda module, *_, own=own: own.add(module.training))
    visits(resident, TASKS[:1])
    assert seen == {True: {True} if dropout else set(), False: {False}}


def config(model: Path, folder: Path) -> dict[str, Any]:
    path = folder / "rows.jsonl"
    path.write_text(
        "".join(
            json.dumps({"question": f"What {n}?", "answer": f"client {k} has {n}", "owner": f"client-{k}"}) + "\n"
            for k in range(4)
            for n in range(2 + k)
        )
    )
    return {
        "engine": "inline",
        "model.name": str(model),
        "lora.rank": 2,
        "lora.targets": LINEAR.get(model.name, "all-linear"),
        "data.name": "jsonl",
        "data.path": str(path),
        "data.columns": {"client": "owner"},
        "federation.clients": 4,
        "federation.clients-per-round": 4,
        "federation.rounds": 2,
        "federation.joins": {"client-3": 2},
        "train.local-epochs": 1,
        "train.batch-size": 2,
        "forget.client": "client-3",
        "forget.methods": ["rollback"],
        "evaluate.limit": 1,
        "evaluate.max-new-tokens": 1,
    }


def rollback_is_the_oracle(kind: str, folder: Path) -> None:
    model = tiny_models.build(kind, folder / kind, **DRAWS[kind])
    events: list[dict[str, Any]] = []
    result = simulate(ob.load_config(None, config(model, folder)), folder / "run", [events.append])
    (request,) = result.metrics["requests"]
    one, other = (RunResult(result.directory, f"{request['id']}/{name}").adapter for name in ("rollback", "oracle"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    (text,) = [e["text"] for e in events if e["event"] == "warning" and "at random" in e["text"]]
    assert all(f"{name} = {value:g}" in text for name, value in DRAWS[kind].items())


def test_rollback_is_the_oracle_and_what_is_switched_off_is_said_once(tmp_path: Path) -> None:
    rollback_is_the_oracle("opt", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", DRAWS)
def test_rollback_is_the_oracle(kind: str, tmp_path: Path) -> None:
    rollback_is_the_oracle(kind, tmp_path)


def test_a_model_without_draws_is_not_spoken_of() -> None:
    assert base_draws(load_base(ModelConfig()).model) == ()


def test_deterministic_kernels_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as a machine without a GPU can tell: they are asked for, and a kernel that has none is no end."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    said: list[tuple[bool, bool]] = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda on, warn_only=False: said.append((on, warn_only)))
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    ask_for_deterministic_kernels()
    assert said == [(True, False)] and not torch.utils.deterministic.fill_uninitialized_memory

    def raises(text: str) -> Callable[[], None]:
        def step() -> None:
            raise RuntimeError(text)

        return step

    assert repeats_bits(lambda: None) and said == [(True, False)]
    assert not repeats_bits(raises("x_cuda does not have a deterministic implementation"))
    assert said[1:] == [(True, True)]
    with pytest.raises(RuntimeError, match="out of memory"):
        repeats_bits(raises("out of memory"))
