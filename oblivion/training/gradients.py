"""Compute the gradient of a step: that of the sum of the terms, or what an objective makes of each term's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from oblivion.objectives.needs import Role
from oblivion.objectives.terms import Answers, CombinesGradients, Objective

if TYPE_CHECKING:
    from torch import Tensor


class Gradients:
    """The gradients of one client's step, added up over its micro-batches.

    Parameters
    ----------
    objective : Objective
        It decides whether there is one gradient or one for each of the two terms.
    parameters : list of Parameter
        The parameters that are trained; the gradient is left in them.
    """

    def __init__(self, objective: Objective, parameters: Sequence[Any]) -> None:
        self._combine = objective.combine_gradients if isinstance(objective, CombinesGradients) else None
        self._parameters = list(parameters)
        self._by_role: dict[Role, Tensor] = {}

    def add(self, parts: Mapping[Role, Tensor]) -> float:
        """Add the gradient of a micro-batch's loss, given by role, and return the loss."""
        import torch

        loss = torch.stack(list(parts.values())).sum()
        if self._combine is None:
            loss.backward()  # type: ignore[no-untyped-call]
            return float(loss.detach())
        for role, part in parts.items():
            gradients = torch.autograd.grad(
                part, self._parameters, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            flat = torch.cat([gradient.flatten() for gradient in gradients])[None]
            self._by_role[role] = self._by_role[role] + flat if role in self._by_role else flat
        return float(loss.detach())

    def finish(self) -> None:
        """Leave the gradient of the whole step in the parameters, and begin anew."""
        if self._combine is None:
            return
        (combined,) = self._combine(self._by_role["forget"], self._by_role["retain"])
        sizes = [parameter.numel() for parameter in self._parameters]
        for parameter, part in zip(self._parameters, combined.split(sizes), strict=True):
            parameter.grad = part.view_as(parameter).clone()
        self._by_role.clear()


def with_state(answers: Answers, states: Sequence[Mapping[str, float]], like: Tensor) -> Answers:
    """Return the answers with each sequence's state, in the dtype of `like`; clients have equally many sequences."""
    if not states[0]:
        return answers
    width = answers.size // len(states)
    state = {name: like.new_tensor([one[name] for one in states]).repeat_interleave(width) for name in states[0]}
    return dataclasses.replace(answers, state=state)
