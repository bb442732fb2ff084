"""The product and plain transformers, PEFT and torch side by side on one model: the comparisons of the zoo."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from oblivion.config import LoraConfig, ModelConfig, TrainConfig
from oblivion.data.tokens import TokenRow
from oblivion.metrics.generation import generate
from oblivion.metrics.scoring import score_rows
from oblivion.models.loading import Base, load_base
from oblivion.models.resident import ResidentModel
from oblivion.objectives.terms import objective_from
from oblivion.seeding import numpy_generator
from oblivion.training.cohort import train_cohort
from oblivion.training.local import LocalTask, micro_batches
from oblivion.types import Adapter, ClientUpdate, RoundInfo

INFO = RoundInfo(branch="main", round=2, rounds=3, population=("c0",), seed=5)
LORA = LoraConfig(rank=4, alpha=8)
TRAIN = TrainConfig(batch_size=4, local_epochs=1, optimizer="sgd", learning_rate=0.5, clip_norm=1.0)
LAST = 1023
"""The highest id of the tokenizer."""


def plain_model(folder: Path) -> Any:
    """The model as transformers opens it, in evaluation mode."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def text(length: int, *names: str | int) -> tuple[int, ...]:
    """Random token ids, none special."""
    return tuple(numpy_generator(0, f"zoo/{names}").integers(3, LAST + 1, length).tolist())


def scored_rows(context: int) -> list[TokenRow]:
    """Rows of very different length; with prompts in common, also so long that all answers do not fit the context."""
    rows = [TokenRow((*text(n - 1, "row", n), 2), max(1, n // 3)) for n in (4, 9, 23, 60, 150, context)]
    for length, answers in ((5, (1, 7, 20)), (40, (3, 30, 30, 12)), (context - 60, (50, 60, 7, 55))):
        prompt = text(length, "prompt", length)
        rows += [TokenRow((*prompt, *text(n - 1, length, i), 2), length) for i, n in enumerate(answers)]
    return rows


def prompts_of(context: int, new: int) -> list[tuple[int, ...]]:
    """Prompts of very different length, the last of which leave room for few tokens."""
    lengths = (2, 3, 8, 8, 21, 45, 90, context - new - 1, context - 5, context - 4)
    return [(1, *text(n - 1, "asked", i, n)) for i, n in enumerate(lengths)]


def plain_scores(model: Any, row: TokenRow) -> np.ndarray[Any, Any]:
    """Log-probabilities of a row's labels, the row alone in the model."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0].double()
    logs = logits.log_softmax(-1)[row.prompt_length - 1 : len(row.ids) - 1]
    return logs[range(len(row.labels)), list(row.labels)].numpy()  # type: ignore[no-any-return]


def farthest_score(ours: Any, plain: Any, rows: Sequence[TokenRow]) -> float:
    """The largest difference between a row's log-probability in our one pass and alone in the plain model, in nats."""
    scores = score_rows(ours, rows, pad_id=0)
    return max(
        float(np.abs(score.log_probs - plain_scores(plain, row)).max()) for score, row in zip(scores, rows, strict=True)
    )


def plain_text(model: Any, tokenizer: Any, prompt: tuple[int, ...], limit: int, stops: Sequence[int]) -> str:
    """What transformers itself generates for one prompt."""
    with torch.no_grad():
        ids = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            do_sample=False,
            num_beams=1,
            max_new_tokens=limit,
            eos_token_id=list(stops),
            pad_token_id=0,
        )
    new = ids[0, len(prompt) :].tolist()
    return str(tokenizer.decode(new[:-1] if new[-1] in stops else new, skip_special_tokens=True)).strip()


def generated(base: Base, plain: Any, new: int = 20) -> list[tuple[str, str]]:
    """Ours and the plain model's text for every prompt; some end early, at a token that the plain model likes."""
    from transformers import GenerationConfig

    prompts = prompts_of(base.max_length, new)
    limits = [min(new, base.max_length - len(prompt)) for prompt in prompts]
    plain.generation_config = GenerationConfig()  # some models bring settings that are not greedy
    known = plain.generate(torch.tensor([prompts[3]]), do_sample=False, max_new_tokens=6, pad_token_id=0)
    stops = [2, int(known[0, -2])]
    base.model.generation_config.eos_token_id = stops
    ours = generate(base.model, base.tokenizer, prompts, max_new_tokens=new, max_length=base.max_length, batch_size=4)
    stops.append(base.tokenizer.eos_token_id)
    theirs = [
        plain_text(plain, base.tokenizer, prompt, limit, stops) for prompt, limit in zip(prompts, limits, strict=True)
    ]
    return list(zip(ours, theirs, strict=True))


def start_of(resident: ResidentModel) -> Adapter:
    """An adapter none of whose tensors is zero."""
    generator = torch.Generator().manual_seed(3)
    return {n: 0.1 * torch.randn(p.shape, generator=generator) for n, p in resident.parameters.items()}


def clients() -> list[LocalTask]:
    """Three clients, whose rows have very different lengths."""
    tasks = []
    for index, lengths in enumerate(((9, 30, 70, 12, 25, 40), (8, 5, 16), (90, 50, 20, 31, 7))):
        rows = [TokenRow((*text(n - 1, index, i), 2), max(1, n // 4)) for i, n in enumerate(lengths)]
        tasks.append(LocalTask(client_id=f"c{index}", rows={"retain": rows}))
    return tasks


def trained(resident: ResidentModel, tasks: Sequence[LocalTask]) -> list[ClientUpdate]:
    """Our own visits of some clients, as one cohort."""
    updates, failures = train_cohort(resident, start_of(resident), tasks, objective_from("lm", {}), TRAIN, INFO)
    if failures:
        raise AssertionError(failures)
    return updates


def plain_visit(model: Any, start: Adapter, targets: Any, task: LocalTask) -> Adapter:
    """One client's visit with PEFT, transformers' own loss, and torch's optimizer, each row padded with a mask."""
    import peft

    settings = peft.LoraConfig(r=LORA.rank, lora_alpha=LORA.alpha, target_modules=targets, task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(model, settings).eval()
    own = {n.replace(".default.", "."): p for n, p in adapted.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(start[name])
    optimizer = torch.optim.SGD(own.values(), lr=TRAIN.learning_rate)
    for step in micro_batches(task, TRAIN, INFO):
        rows = step[0]["retain"]
        optimizer.zero_grad()
        labels = sum(len(row.labels) for row in rows)
        for row in rows:  # each alone: no padding, no neighbour
            logits = adapted(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0].float()
            wanted = torch.tensor(row.labels)
            where = logits[row.prompt_length - 1 : len(row.ids) - 1]
            (torch.nn.functional.cross_entropy(where, wanted, reduction="sum") / labels).backward()
        torch.nn.utils.clip_grad_norm_(list(own.values()), TRAIN.clip_norm)
        optimizer.step()
    return {name: parameter.detach() - start[name] for name, parameter in own.items()}


def distance(one: Adapter, other: Adapter) -> float:
    """Relative: the norm of the difference by the norm of the second."""
    assert one.keys() == other.keys()
    gap = sum(float((one[n].double() - other[n].double()).square().sum()) for n in one)
    return float((gap / sum(float(other[n].double().square().sum()) for n in other)) ** 0.5)


@dataclass(frozen=True)
class Opened:
    """A model opened by the product."""

    folder: Path

    def base(self) -> Base:
        return load_base(ModelConfig(name=str(self.folder), dtype="float32"))

    def resident(self, lora: LoraConfig = LORA) -> ResidentModel:
        return ResidentModel(self.base(), lora)
