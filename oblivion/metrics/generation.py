"""Greedy answers to prompts in wide batches: generated once, for every metric on text."""

from __future__ import annotations

import contextlib
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
    with torch.inference_mode(), _greedy(plain, tokenizer, stops):
        for batch, limit in _batches(
            sorted(set(prompts), key=lambda p: (len(p), p)), max_new_tokens, max_length, batch_size
        ):
            ids, mask = _pad_left(batch, tokenizer.pad_token_id)
            ids, mask = ids.to(plain.device), mask.to(plain.device)
            output = plain.generate(input_ids=ids, attention_mask=mask, max_new_tokens=limit)
            for prompt, new in zip(batch, output[:, ids.shape[1] :].tolist(), strict=True):
                end = next((i for i, token in enumerate(new) if token in stops), len(new))
                answers[prompt] = tokenizer.decode(new[:end], skip_special_tokens=True).strip()
    return [answers[prompt] for prompt in prompts]


def _stop_ids(model: Any, tokenizer: Any) -> set[int]:
    own = model.generation_config.eos_token_id
    return {tokenizer.eos_token_id, *([] if own is None else [own] if isinstance(own, int) else own)}


@contextlib.contextmanager
def _greedy(model: Any, tokenizer: Any, stops: set[int]) -> Iterator[None]:
    """Put plain greedy settings in place of the model's own (which may sample, or penalise repetition)."""
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig(
        do_sample=False, num_beams=1, pad_token_id=tokenizer.pad_token_id, eos_token_id=sorted(stops)
    )
    try:
        yield
    finally:
        model.generation_config = own


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
