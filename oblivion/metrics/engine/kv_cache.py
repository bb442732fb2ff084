"""Write keys and values of generated text into memory that is taken once."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class _RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """A layer's keys and values, (B, heads, tokens, dimension), as views of buffers with room for more tokens.

    Its base class copies all of them at every token, and on a CPU pays for fresh pages each time.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room
        self._buffers: tuple[Tensor, ...] = ()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append (B, heads, new tokens, dimension), and return all."""
        known = self.get_seq_length()
        length = known + key_states.shape[-2]
        if not self._buffers or length > self._buffers[0].shape[-2]:
            whole = super().update(key_states, value_states)
            self._buffers = tuple(_with_room(states, self._room) for states in whole)
        else:
            for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
                buffer[..., known:length, :] = new
        self.keys, self.values = (buffer[..., :length, :] for buffer in self._buffers)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some of the B texts; a layer that shares the keys of another is never filled."""
        if self._buffers:
            length = self.get_seq_length()
            self._buffers = tuple(buffer[indices] for buffer in self._buffers)
            self.keys, self.values = (buffer[..., :length, :] for buffer in self._buffers)


def _with_room(states: Tensor, room: int) -> Tensor:
    shape = list(states.shape)
    shape[-2] += room
    buffer = states.new_empty(shape)
    buffer[..., : states.shape[-2], :] = states
    return buffer


def make_cache(model: Any, room: int) -> DynamicCache:
    """Make an empty cache for a model, whose layers of full attention take memory for `room` more tokens at a time."""
    cache = DynamicCache(config=model.config)
    cache.layers = [_RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
