"""Run a round of local training: ours against the loops that others use.

Both loops are written here from their descriptions. The *Oblivionis-style* loop copies the whole model for every
client, all alive at once, and makes a fresh `transformers.Trainer` per visit, padding to the longest row of a random
batch and computing all logits. The *plain* loop keeps one PEFT model, copies adapter tensors in and out and makes a
fresh AdamW per visit. All three take the same optimizer steps on the same rows; rows are tokenised beforehand for all
of them.
"""

from __future__ import annotations

import contextlib
import copy
import io
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.measure import Result, side_by_side
from oblivion.config import LoraConfig, TrainConfig
from oblivion.data.tokens import TokenRow
from oblivion.models.loading import Base
from oblivion.models.resident import ResidentModel
from oblivion.objectives.terms import objective_from
from oblivion.training.cohort import train_cohort
from oblivion.training.local import LocalTask
from oblivion.training.slots import slots_for
from oblivion.types import RoundInfo

VOCABULARY, PAD = 2000, 0
RATE = 1e-3


@dataclass(frozen=True)
class Case:
    """A shape of model and data, and the ratios that are required."""

    name: str
    layers: int
    width: int
    rows: int
    batch: int
    clients: int = 8
    copied: float | None = None
    plain: float = 0.97
    dtype: str = "float32"


CASES = (
    Case("16 layers of width 64, 4 rows, batch 1", 16, 64, 4, 1, copied=7.0, plain=2.0),
    Case("4 layers of width 256, 4 rows, batch 1", 4, 256, 4, 1, copied=3.5),
    Case("4 layers of width 256, 16 rows, batch 4", 4, 256, 16, 4, copied=1.8),
    Case("16 layers of width 64, 16 rows, batch 4", 16, 64, 16, 4),
    Case("4 layers of width 64, 16 rows, batch 8", 4, 64, 16, 8),
    Case("2 layers of width 512, 8 rows, batch 4", 2, 512, 8, 4),
    Case("2 layers of width 512 in bf16, 8 rows, batch 4", 2, 512, 8, 4, dtype="bfloat16"),
    Case("2 layers of width 1024 in bf16, 4 rows, batch 2", 2, 1024, 4, 2, dtype="bfloat16"),
)


class _Padding:
    pad_token_id = PAD


def make_model(case: Case) -> Any:
    """Make a frozen Llama of the case's shape with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return (
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=case.width,
                intermediate_size=4 * case.width,
                num_hidden_layers=case.layers,
                num_attention_heads=max(2, case.width // 32),
                num_key_value_heads=max(2, case.width // 32),
                max_position_embeddings=512,
            )
        )
        .to(getattr(torch, case.dtype))
        .requires_grad_(False)
    )


def _rows(case: Case) -> list[list[TokenRow]]:
    """Make rows of TOFU's lengths: prompts of about 55 tokens, answers of about 45."""
    generator = np.random.default_rng(0)
    clients = []
    for _ in range(case.clients):
        rows = []
        for _ in range(case.rows):
            prompt, answer = int(generator.integers(40, 71)), int(generator.integers(25, 66))
            rows.append(TokenRow(tuple(generator.integers(3, VOCABULARY, prompt + answer).tolist()), prompt))
        clients.append(rows)
    return clients


def run() -> Iterator[Result]:
    """Measure every case against both loops."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for case in CASES:
        yield from _case(case)


def _case(case: Case) -> Iterator[Result]:
    rows = _rows(case)
    ours, copied, plain = side_by_side(_ours(case, rows), _copied(case, rows), _plain(case, rows))
    for name, other, bound in (
        ("whole-model copies and a Trainer per visit", copied, case.copied),
        ("plain PEFT loop", plain, case.plain),
    ):
        yield Result("rounds", case.name, ours, name, other, bound_ratio=bound)


def _ours(case: Case, rows: list[list[TokenRow]]) -> Any:
    resident = ResidentModel(Base(make_model(case).eval(), _Padding(), 512, case.dtype), LoraConfig(rank=8, alpha=16))
    start = resident.initial_adapter(0)
    tasks = [LocalTask(client_id=f"client-{i}", rows={"retain": own}) for i, own in enumerate(rows)]
    settings = TrainConfig(batch_size=case.batch, local_epochs=1, learning_rate=RATE)
    info = RoundInfo(branch="main", round=1, rounds=1, population=(), seed=0)
    objective = objective_from("lm", {})
    slots = slots_for(case.width, case.batch, "cpu", case.clients)

    def round() -> None:
        for first in range(0, len(tasks), slots):
            updates, failures = train_cohort(resident, start, tasks[first : first + slots], objective, settings, info)
            assert not failures and all(update.steps == case.rows // case.batch for update in updates)

    return round


def labelled(rows: list[TokenRow]) -> dict[str, torch.Tensor]:
    """Return a batch as the other loops make it: padded to the longest row, labels where the answer is."""
    length = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), length), PAD)
    labels = torch.full((len(rows), length), -100)
    mask = torch.zeros((len(rows), length), dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = torch.tensor(row.ids)
        labels[index, row.prompt_length : len(row.ids)] = torch.tensor(row.labels)
        mask[index, : len(row.ids)] = 1
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def _peft_model(case: Case) -> Any:
    import peft

    settings = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    return peft.get_peft_model(make_model(case), settings)


def _copied(case: Case, rows: list[list[TokenRow]]) -> Any:
    from transformers import Trainer, TrainingArguments

    model, folder = _peft_model(case), tempfile.mkdtemp()

    def round() -> None:
        copies = [copy.deepcopy(model) for _ in rows]
        for own, client in zip(rows, copies, strict=True):
            arguments = TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=case.batch,
                num_train_epochs=1,
                learning_rate=RATE,
                optim="adamw_torch",
                lr_scheduler_type="constant",
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                use_cpu=True,
                remove_unused_columns=False,
            )
            trainer = Trainer(client, arguments, train_dataset=own, data_collator=labelled)
            with contextlib.redirect_stdout(io.StringIO()):
                trainer.train()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                others = [dict(client.named_parameters())[name].detach() for client in copies]
                parameter.data.copy_(sum(others) / len(others))

    return round


def _plain(case: Case, rows: list[list[TokenRow]]) -> Any:
    model = _peft_model(case)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    start = {name: p.detach().clone() for name, p in trainable.items()}

    def round() -> None:
        states = []
        for own in rows:
            for name, parameter in trainable.items():
                parameter.data.copy_(start[name])
            optimizer = torch.optim.AdamW(trainable.values(), lr=RATE, weight_decay=0.0)
            order = torch.randperm(len(own)).tolist()
            model.train()
            for first in range(0, len(own), case.batch):
                batch = labelled([own[i] for i in order[first : first + case.batch]])
                optimizer.zero_grad()
                model(**batch).loss.backward()
                torch.nn.utils.clip_grad_norm_(trainable.values(), 1.0)
                optimizer.step()
            states.append({name: p.detach().clone() for name, p in trainable.items()})
        for name in start:
            torch.stack([state[name] for state in states]).mean(0)

    return round
