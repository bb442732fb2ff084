"""Make the outputs that an objective needs for the batches of a pass: exactly these, and each of them once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from oblivion.errors import ConfigError, nearest
from oblivion.objectives.needs import TEACHERS, Need, Role, Source, by_source, parse_needs
from oblivion.objectives.terms import Objective
from oblivion.tasks.task import Batch, Task

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Wanted:
    """Kinds of outputs by source and role."""

    kinds: Mapping[Source, Mapping[Role, tuple[str, ...]]]

    @classmethod
    def of(cls, objective: Objective) -> Wanted:
        """Return what an objective needs."""
        return cls(by_source(objective.needs))

    def make(
        self, task: Task, model: Any, batches: Mapping[Role, Batch], use: Callable[[Source], None]
    ) -> dict[Role, dict[str, Tensor]]:
        """Run the model for the batches; the teachers come first, without gradients.

        Parameters
        ----------
        task, model
            The task, and the model that it runs.
        batches : mapping of role to Batch
            The rows; what is wanted of another role is not made.
        use : callable
            It puts the adapter of a source into effect. It is called before the first pass of each source, and last of
            all with ``"own"``, which stays in effect.

        Returns
        -------
        dict of role to dict of str to Tensor
            As `oblivion.objectives.terms.Outputs`.
        """
        import torch

        outputs: dict[Role, dict[str, Tensor]] = {role: {} for role in batches}
        for source in (*TEACHERS, "own"):
            kinds = self.kinds.get(source, {})
            roles = [role for role in batches if role in kinds]
            if roles or source == "own":
                use(source)
            with torch.set_grad_enabled(source == "own"):
                for role in roles:
                    made = task.forward(model, batches[role], kinds[role])
                    outputs[role] |= {Need(role, source, kind).key: tensor for kind, tensor in made.items()}
        return outputs

    def forwarded(self, sizes: Mapping[Role, int]) -> int:
        """Return the size of all passes, teachers included, over batches of these sizes."""
        return sum(sizes[role] for roles in self.kinds.values() for role in roles if role in sizes)


def check_needs(name: str, objective: Objective, task: Task, model: Any, residual: bool) -> None:
    """Refuse an objective that needs what the model of a run cannot give.

    Parameters
    ----------
    name : str
        The objective's registered name, for the message.
    objective, task, model
        The objective, and what it would be used with.
    residual : bool
        Whether the LoRA scheme adds to the base model's weights, so that the base model of the beginning is gone.

    Raises
    ------
    ConfigError
        Naming the objective and what is missing.
    """
    there = task.kinds(model)
    for need in parse_needs(objective.needs):
        if need.kind not in there:
            raise ConfigError(
                f"objective '{name}' needs '{need.kind}', which this model does not have; {nearest(need.kind, there)}"
            )
        if need.source == "base" and residual:
            raise ConfigError(
                f"objective '{name}' needs the base model, and lora.scheme adds what was learned to the base model's "
                "weights; take another objective, or run again with a scheme that keeps no residual"
            )
