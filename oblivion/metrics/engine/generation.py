"""Generate greedy answers to prompts in wide batches, once for all metrics on text.

The loop is our own, because transformers' ``generate`` forwards every row until the slowest has ended. It pads on the
left, so it is for models that take positions and keep nothing but keys and values; the others go through ``generate``,
prompts of one length together.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from oblivion.models.attention import changes_with_length, is_stateful

Prompt = tuple[int, ...]


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    max_length: int,
    batch_size: int,
    ends: Collection[int] = (),
    before: Sequence[str] = (),
) -> list[str]:
    """Continue prompts by the most likely token until the end of an answer.

    Equal prompts are continued once; the others are sorted by length and padded on the left.

    Parameters
    ----------
    model : transformers or peft model
        In evaluation mode; the sampling settings that came with it are not used.
    tokenizer : transformers tokenizer
        Its EOS ends an answer, as do the EOS ids of the model's own generation settings.
    prompts : sequence of tuple of int
        The token ids of each prompt; no prompt is empty.
    max_new_tokens : int
        The most tokens to generate; fewer where a prompt leaves less of the context.
    max_length : int
        The context in tokens.
    batch_size : int
        Prompts that are continued together.
    ends : collection of int
        Further ids that end an answer, such as the end of a turn in the chat format.
    before : sequence of str
        A text ends before the first place where one of these stands.

    Returns
    -------
    list of str
        Per prompt the generated text without special tokens, stripped.
    """
    import torch

    answers: dict[Prompt, str] = {}
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    stops = _stop_ids(plain, tokenizer) | set(ends)
    ordered = sorted(set(prompts), key=lambda p: (len(p), p))
    own = bool(ordered) and _is_plain(plain, min(len(ordered[-1]) + max_new_tokens, max_length))
    if not plain._supports_default_dynamic_cache():
        batch_size = 1  # such models keep other things, and RWKV mixes up the states of a batch
    with torch.inference_mode(), contextlib.nullcontext() if own else _without_settings(plain):
        for batch, limit in _batches(ordered, max_new_tokens, max_length, batch_size, mixed=own):
            write = _continue if own else _generate
            written = write(plain, batch, limit, stops, tokenizer.pad_token_id)
            for prompt, new in zip(batch, written, strict=True):
                answers[prompt] = _cut(tokenizer.decode(new, skip_special_tokens=True), before).strip()
    return [answers[prompt] for prompt in prompts]


def _cut(text: str, before: Sequence[str]) -> str:
    """Return the text up to the first place where one of the strings in `before` stands."""
    return text[: min((at for stop in before if (at := text.find(stop)) >= 0), default=len(text))]


def _stop_ids(model: Any, tokenizer: Any) -> set[int]:
    own = model.generation_config.eos_token_id
    return {tokenizer.eos_token_id, *([] if own is None else [own] if isinstance(own, int) else own)}


def _is_plain(model: Any, longest: int) -> bool:
    """Return whether texts of different lengths can be continued side by side, from keys and values alone."""
    known = inspect.signature(model.forward).parameters
    return (
        {"position_ids", "past_key_values"} <= known.keys()
        and model._supports_default_dynamic_cache()
        and not is_stateful(model)
        and not changes_with_length(model, longest)
    )


@contextlib.contextmanager
def _without_settings(model: Any) -> Iterator[None]:
    """Take away the generation settings of the model for a while; transformers would mix them into those given."""
    from transformers import GenerationConfig

    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _generate(model: Any, batch: Sequence[Prompt], limit: int, stops: set[int], pad_id: int) -> list[list[int]]:
    """Return what `_continue` returns, by transformers' own loop; the prompts have one length."""
    import torch
    from transformers import GenerationConfig

    if limit < 1:
        return [[] for _ in batch]
    ids = torch.tensor(batch, device=model.device)
    settings = GenerationConfig(
        max_new_tokens=limit, do_sample=False, num_beams=1, eos_token_id=sorted(stops), pad_token_id=pad_id
    )
    texts = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return [list(itertools.takewhile(lambda id: id not in stops, text)) for text in texts[:, ids.shape[1] :].tolist()]


def _continue(model: Any, batch: Sequence[Prompt], limit: int, stops: set[int], pad_id: int) -> list[list[int]]:
    """Return the most likely tokens after each prompt, up to `limit` or a stop; ended rows leave the batch."""
    import torch

    from oblivion.metrics.engine.kv_cache import make_cache

    known = inspect.signature(model.forward).parameters
    options = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
    cache = make_cache(model, limit)
    ids, mask = (part.to(model.device) for part in _pad_left(batch, pad_id))
    written: list[list[int]] = [[] for _ in batch]
    there = list(range(len(batch)))
    for _ in range(limit):
        places = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = model(
            input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True, **options
        )
        new = output.logits[:, -1].argmax(-1)
        going = []
        for index, token in enumerate(new.tolist()):
            if token not in stops:
                written[there[index]].append(token)
                going.append(index)
        if not going:
            break
        if len(going) < len(there):
            chosen = torch.tensor(going, device=model.device)
            new, mask = new[chosen], mask[chosen]
            there = [there[index] for index in going]
            cache.batch_select_indices(chosen)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        ids = new[:, None]
    return written


def _batches(
    ordered: Sequence[Prompt], max_new_tokens: int, max_length: int, batch_size: int, mixed: bool
) -> Iterator[tuple[list[Prompt], int]]:
    """Yield batches of prompts that may be continued equally far, and how far; of one length unless `mixed`."""
    batch: list[Prompt] = []
    limit = max_new_tokens
    for prompt in ordered:
        room = min(max_new_tokens, max_length - len(prompt))
        other = room != limit or not (mixed or not batch or len(batch[0]) == len(prompt))
        if batch and (len(batch) == batch_size or other):
            yield batch, limit
            batch = []
        limit = room
        batch.append(prompt)
    if batch:
        yield batch, limit


def _pad_left(prompts: Sequence[Prompt], pad_id: int) -> tuple[Any, Any]:
    import torch

    length = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), length), pad_id)
    mask = torch.zeros_like(ids)
    for index, prompt in enumerate(prompts):
        ids[index, length - len(prompt) :] = torch.tensor(prompt)
        mask[index, length - len(prompt) :] = 1
    return ids, mask
