"""Greedy answers to prompts in wide batches: generated once, for every metric on text.

A loop of our own, because transformers' ``generate`` forwards every row until the slowest has ended.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

Prompt = tuple[int, ...]


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    max_length: int,
    batch_size: int,
) -> list[str]:
    """Continue prompts by the most likely token until EOS.

    Equal prompts are continued once; the others are sorted by length and padded on the left.

    Parameters
    ----------
    model : transformers or peft model
        In evaluation mode; the sampling settings that came with it are not used.
    tokenizer : transformers tokenizer
        Its EOS ends an answer, as do the EOS ids of the model's own generation settings.
    prompts : sequence of tuple of int
        Token ids, none empty.
    max_new_tokens : int
        The most tokens to generate; fewer where a prompt leaves less of the context.
    max_length : int
        The context in tokens.
    batch_size : int
        Prompts that are continued together.

    Returns
    -------
    list of str
        Per prompt the generated text without special tokens, stripped.
    """
    import torch

    answers: dict[Prompt, str] = {}
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    stops = _stop_ids(plain, tokenizer)
    with torch.inference_mode():
        for batch, limit in _batches(
            sorted(set(prompts), key=lambda p: (len(p), p)), max_new_tokens, max_length, batch_size
        ):
            written = _continue(plain, batch, limit, stops, tokenizer.pad_token_id)
            for prompt, new in zip(batch, written, strict=True):
                answers[prompt] = tokenizer.decode(new, skip_special_tokens=True).strip()
    return [answers[prompt] for prompt in prompts]


def _stop_ids(model: Any, tokenizer: Any) -> set[int]:
    own = model.generation_config.eos_token_id
    return {tokenizer.eos_token_id, *([] if own is None else [own] if isinstance(own, int) else own)}


def _continue(model: Any, batch: Sequence[Prompt], limit: int, stops: set[int], pad_id: int) -> list[list[int]]:
    """The most likely tokens after each prompt, up to `limit` of them or to a stop; rows that end leave the batch."""
    import torch

    from oblivion.metrics.kv_cache import make_cache

    known = inspect.signature(model.forward).parameters
    options = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
    cache = make_cache(model, limit) if model._supports_default_dynamic_cache() else None
    ids, mask = (part.to(model.device) for part in _pad_left(batch, pad_id))
    whole = ids
    written: list[list[int]] = [[] for _ in batch]
    there = list(range(len(batch)))
    for _ in range(limit):
        if "position_ids" in known:
            options["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = model(
            input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=cache is not None, **options
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
            new, mask, whole = new[chosen], mask[chosen], whole[chosen]
            there = [there[index] for index in going]
            if cache is not None:
                cache.batch_select_indices(chosen)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        whole = torch.cat([whole, new[:, None]], dim=1)
        ids = new[:, None] if cache is not None else whole  # without a cache the text is read again
    return written


def _batches(
    ordered: Sequence[Prompt], max_new_tokens: int, max_length: int, batch_size: int
) -> Iterator[tuple[list[Prompt], int]]:
    """Batches of prompts that may all be continued equally far, and how far."""
    batch: list[Prompt] = []
    limit = max_new_tokens
    for prompt in ordered:
        room = min(max_new_tokens, max_length - len(prompt))
        if batch and (len(batch) == batch_size or room != limit):
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
