"""All adapters of a cohort in one buffer, with an optimizer that steps every row by itself.

Row k holds one client's adapter, flat, tensor after tensor in name order. Gradients and moments have the same layout.
Clipping and AdamW (Loshchilov and Hutter, 2019) or SGD work on whole rows at once, each row with its own step count, so
a row is bit for bit what it would be in any other row, whoever its neighbours are.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from oblivion.config import TrainConfig
from oblivion.objectives.needs import Role
from oblivion.types import Adapter

if TYPE_CHECKING:
    from torch import Tensor

_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8
_CLIP_EPS = 1e-6


class Arena:
    """K adapters side by side.

    Parameters
    ----------
    like : mapping of str to Tensor
        The tensors of one adapter; their order, shapes, dtype and device are taken.
    rows : int
        K.
    settings : TrainConfig
        The optimizer, its rate, weight decay and clipping.

    Attributes
    ----------
    parameters : dict of str to Tensor (K, *shape)
        Views of the buffer that gradients flow into.
    """

    def __init__(self, like: Mapping[str, Tensor], rows: int, settings: TrainConfig) -> None:
        import torch

        self.settings = settings
        self.shapes = {name: tuple(tensor.shape) for name, tensor in like.items()}
        first = next(iter(like.values()))
        size = sum(math.prod(shape) for shape in self.shapes.values())
        self.values, self.gradients, self.first, self.second = (
            torch.zeros((rows, size), dtype=first.dtype, device=first.device) for _ in range(4)
        )
        self.steps = torch.zeros(rows, device=first.device)
        self.starts: Tensor | None = None  # made when the first client with a proximal term comes
        self.proximal = torch.zeros((rows, 1), dtype=first.dtype, device=first.device)
        self.corrections: Tensor | None = None  # made when the first client with a correction comes
        self.kept: Tensor | None = None  # holds the retain terms' gradients where an objective combines two
        self.parameters: dict[str, Any] = {
            name: torch.nn.Parameter(part) for name, part in self._parts(self.values).items()
        }
        self._gather(self.gradients)

    def _parts(self, buffer: Tensor) -> dict[str, Tensor]:
        """Return views of a buffer by tensor, (K, *shape)."""
        parts, offset = {}, 0
        for name, shape in self.shapes.items():
            place = slice(offset, offset + math.prod(shape))
            parts[name] = buffer[:, place].view(len(buffer), *shape)
            offset = place.stop
        return parts

    def _gather(self, buffer: Tensor) -> None:
        for name, part in self._parts(buffer).items():
            self.parameters[name].grad = part

    @contextlib.contextmanager
    def gathering(self, role: Role) -> Iterator[None]:
        """Let gradients flow into the buffer of a role for a while; those of ``retain`` have one of their own."""
        import torch

        if role != "retain":
            yield
            return
        if self.kept is None:
            self.kept = torch.zeros_like(self.gradients)
        self._gather(self.kept)
        yield
        self._gather(self.gradients)

    def load(self, row: int, adapter: Adapter, proximal_mu: float = 0.0, correction: Adapter | None = None) -> None:
        """Begin a visit in a row: the adapter is copied in, the optimizer begins anew."""
        import torch

        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter[row].copy_(adapter[name])
        self.proximal[row] = proximal_mu
        if proximal_mu and self.starts is None:
            self.starts = torch.zeros_like(self.values)
        if self.starts is not None:
            self.starts[row] = self.values[row]
        if correction and self.corrections is None:
            self.corrections = torch.zeros_like(self.values)
        if self.corrections is not None:
            flat = torch.cat([correction[name].reshape(-1) for name in self.shapes]) if correction else torch.zeros(())
            self.corrections[row] = flat.to(self.corrections)
        self.first[row].zero_()
        self.second[row].zero_()
        self.steps[row] = 0

    def read(self, row: int) -> Adapter:
        """Copy a row's adapter out: fp32 (fp64 where the arena is), on the CPU."""
        return {name: p.detach()[row].to("cpu", copy=True) for name, p in self.parameters.items()}

    def step(self, rows: Sequence[int], combine: Callable[[Tensor, Tensor], Tensor] | None = None) -> None:
        """Clip and step some rows with the gradients that have come together; gradients are zeroed.

        Parameters
        ----------
        rows : sequence of int
            The rows that have a client; the others are left alone.
        combine : callable, optional
            It makes one gradient of the gathered two; see `oblivion.objectives.terms.CombinesGradients`.
        """
        import torch
        from torch.optim.adamw import adamw

        settings = self.settings
        with torch.no_grad():
            if combine is not None and self.kept is not None:
                chosen = torch.tensor(rows, device=self.kept.device)
                self.gradients[chosen] = combine(self.gradients[chosen], self.kept[chosen])
                self.kept.zero_()
            if self.starts is not None:
                self.gradients.addcmul_(self.values - self.starts, self.proximal)
            norms = torch.linalg.vector_norm(self.gradients, dim=1, keepdim=True)
            self.gradients.mul_((settings.clip_norm / (norms + _CLIP_EPS)).clamp_(max=1.0))
            if self.corrections is not None:
                self.gradients.add_(self.corrections)
            values, gradients = ([part[row] for row in rows] for part in (self.values, self.gradients))
            if settings.optimizer == "sgd":
                if settings.weight_decay:
                    torch._foreach_add_(gradients, values, alpha=settings.weight_decay)
                torch._foreach_add_(values, gradients, alpha=-settings.learning_rate)
            else:
                adamw(
                    values,
                    gradients,
                    [self.first[row] for row in rows],
                    [self.second[row] for row in rows],
                    [],
                    [self.steps[row] for row in rows],
                    fused=True,
                    amsgrad=False,
                    beta1=_BETA1,
                    beta2=_BETA2,
                    lr=settings.learning_rate,
                    weight_decay=settings.weight_decay,
                    eps=_EPS,
                    maximize=False,
                )
            self.gradients.zero_()
