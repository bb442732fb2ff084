"""The product and plain transformers, PEFT and torch side by side on one model: the comparisons of the zoo."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_models import CONTEXT

from oblivion.config import LoraConfig, ModelConfig, TrainConfig
from oblivion.data.tokens import TokenRow
from oblivion.metrics.engine.generation import generate
from oblivion.metrics.engine.scoring import score_rows
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
Prompt = tuple[int, ...]
LAST = 1023
"""The highest id of the tokenizer."""


def plain_model(folder: Path) -> Any:
    """The model as transformers opens it, in evaluation mode."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()


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


def plain_ids(model: Any, prompt: Prompt, limit: int, stops: Sequence[int]) -> list[int]:
    """What transformers itself generates for one prompt; a model's own generation settings are not used."""
    from transformers import GenerationConfig

    settings = GenerationConfig(do_sample=False, max_new_tokens=limit, eos_token_id=list(stops), pad_token_id=0)
    model.generation_config = GenerationConfig()
    ids = torch.tensor([prompt])
    with torch.no_grad():
        new = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)[0, len(prompt) :]
    return [token for token in new.tolist() if token not in stops]


def is_tied(model: Any, ids: Sequence[int]) -> bool:
    """Whether rounding decides which token is the most likely one after these."""
    with torch.no_grad():
        best = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].topk(2).values
    return float(best[0] - best[1]) < 1e-5


def wrong_texts(base: Base, plain: Any, new: int = 20) -> list[str]:
    """Prompts whose generated text is not the plain model's; some end early, at a token that the plain model likes."""
    prompts = prompts_of(CONTEXT, new)
    stops = [2, plain_ids(plain, prompts[3], 6, [2])[-1]]
    base.model.generation_config.eos_token_id = stops
    ours = generate(base.model, base.tokenizer, prompts, max_new_tokens=new, max_length=CONTEXT, batch_size=4)
    wrong = []
    for prompt, text in zip(prompts, ours, strict=True):
        ids = plain_ids(plain, prompt, min(new, CONTEXT - len(prompt)), stops)
        texts = [base.tokenizer.decode(ids[:n], skip_special_tokens=True).strip() for n in range(len(ids) + 1)]
        if text == texts[-1]:
            continue
        same = max(n for n, start in enumerate(texts) if text.startswith(start))
        if not any(is_tied(plain, (*prompt, *ids[:n])) for n in range(max(0, same - 1), min(same + 1, len(ids)))):
            wrong.append(f"{len(prompt)} tokens: {text!r}, plain {texts[-1]!r}")
    return wrong


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


def trained(resident: ResidentModel, start: Adapter, tasks: Sequence[LocalTask]) -> list[ClientUpdate]:
    """Our own visits of some clients, as one cohort."""
    updates, failures = train_cohort(resident, start, tasks, objective_from("lm", {}), TRAIN, INFO)
    assert not failures, failures
    return updates


def plain_visit(folder: Path, settings: Any, start: Adapter, task: LocalTask) -> Adapter:
    """One client's visit with PEFT, transformers and torch's optimizer, every row alone: no padding, no neighbour."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(plain_model(folder), settings).eval()
    own = {n.replace(".default.", "."): p for n, p in adapted.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(start[name])
    optimizer = torch.optim.SGD(own.values(), lr=TRAIN.learning_rate)
    for step in micro_batches(task, TRAIN, INFO):
        rows = step[0]["retain"]
        optimizer.zero_grad()
        labels = sum(len(row.labels) for row in rows)
        for row in rows:
            logits = adapted(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0].float()
            answer = logits[row.prompt_length - 1 : len(row.ids) - 1]
            loss = torch.nn.functional.cross_entropy(answer, torch.tensor(row.labels), reduction="sum") / labels
            loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(list(own.values()), TRAIN.clip_norm)
        optimizer.step()
    return {name: parameter.detach() - start[name] for name, parameter in own.items()}


def distance(one: Adapter, other: Adapter) -> float:
    """Relative: the norm of the difference by the norm of the second."""
    assert one.keys() == other.keys()
    gap = sum(float((one[n].double() - other[n].double()).square().sum()) for n in one)
    return float((gap / sum(float(other[n].double().square().sum()) for n in other)) ** 0.5)


def opened(folder: Path) -> Base:
    """The model as the product opens it."""
    return load_base(ModelConfig(name=str(folder), dtype="float32"))
