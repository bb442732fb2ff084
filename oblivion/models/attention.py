"""Read from a model's config how its attention works: windows, states, and positions that depend on a text's length.

A short text shows none of these, so they are read from the config instead of tried. Names are matched by how they end,
because every architecture has its own (`sliding_window`, `window_size`, `attention_chunk_size`,
`attention_window_size`, ...).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

from oblivion.models.loading import context_of

_WINDOW = re.compile(r"(window(_size|_len)?|att(ention|n)_chunk_(size|length)|local_attention)$")
_ATTENTION = {"attention", "full_attention", "sliding_attention", "chunked_attention"}


def sees_all_before(model: Any, length: int) -> bool:
    """Return whether each token of a text of `length` sees all before it, and takes its place from position ids.

    If so, the mask and position ids that the caller passes decide alone what a token sees.
    """
    if is_stateful(model) or not takes_positions(model):
        return False
    for name, value in _settings(model):
        sizes = [one for one in (value if isinstance(value, list | tuple) else [value]) if type(one) is int]
        if _WINDOW.search(name) and any(0 < size < length for size in sizes):
            return False
        if name == "alibi" and value:
            return False
    return True


def is_stateful(model: Any) -> bool:
    """Return whether a state runs from token to token, beside attention or in its place."""
    kinds = {
        kind for name, value in _settings(model) if name in ("layer_types", "layers_block_type") for kind in value or ()
    }
    return bool(getattr(model, "_is_stateful", False)) or not kinds <= _ATTENTION


def takes_positions(model: Any) -> bool:
    """Return whether a model takes position ids, which say where in the text each token stands."""
    return "position_ids" in inspect.signature((model.get_decoder() or model).forward).parameters


def changes_with_length(model: Any, length: int) -> bool:
    """Return whether a model encodes the positions of a text of this length differently from a short one's.

    Its output for a text then depends on the other texts of a batch.
    """
    settings = list(_settings(model))
    if not any(name in ("rope_type", "type") and value in ("longrope", "dynamic") for name, value in settings):
        return False
    limits = [value for name, value in settings if name == "original_max_position_embeddings" and value]
    return length > min(limits, default=context_of(model.config))


def _settings(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the names and values of a model's config, also of the tables within it."""

    def walk(table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        for name, value in table.items():
            if isinstance(value, Mapping):
                yield from walk(value)
            else:
                yield str(name), value

    yield from walk(model.config.get_text_config().to_dict())
