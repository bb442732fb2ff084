"""Run a model on the rows of an evaluation where no text is written: only the labels of each row are scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from oblivion.errors import ConfigError
from oblivion.metrics.engine.context import AnswerScore, ScoredRow
from oblivion.metrics.engine.outputs import Outputs, evaluating
from oblivion.metrics.engine.scoring import answer_score, label_statistics
from oblivion.metrics.engine.suite import Groups
from oblivion.tasks.task import Row, Task


@dataclass(frozen=True, kw_only=True)
class LabelPass:
    """One pass of a model over rows, of which it gives the score of the true answer and no other kind of output.

    Attributes
    ----------
    model : torch.nn.Module
        The model of the task.
    task : Task
        How samples become rows, and rows become logits; a sample that it cannot encode is skipped and named.
    batch_size : int
        The number of rows that go through the model together.

    Raises
    ------
    ConfigError
        If the batch size is not positive.
    """

    model: Any
    task: Task
    batch_size: int

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size = {self.batch_size}: expected at least 1")

    def over(self, groups: Groups, wanted: Mapping[str, set[str]]) -> Outputs:
        """Encode the rows of the wanted groups and score their labels; equal rows are scored once.

        Parameters and errors are those of `oblivion.metrics.engine.outputs.TextPass.over`.
        """
        positions: dict[Row, int] = {}
        skipped: list[str] = []
        placed: dict[str, list[tuple[int, int]]] = {}
        for group in (name for name in groups if name in wanted):
            placed[group] = []
            for index, sample in enumerate(groups[group]):
                row = self.task.encode(sample)
                if row is None:
                    skipped.append(sample.id)
                else:
                    placed[group].append((index, positions.setdefault(row, len(positions))))
        moments = any("moments" in kinds for kinds in wanted.values())
        with evaluating(self.model):
            scores = list(self._scores(list(positions), moments))
        rows = {
            group: [ScoredRow(index=index, outputs={"answer": scores[position]}) for index, position in some]
            for group, some in placed.items()
        }
        return Outputs(rows=rows, skipped=tuple(skipped), texts={group: {} for group in rows})

    def _scores(self, rows: Sequence[Row], moments: bool) -> Iterator[AnswerScore]:
        import torch

        device = next(iter(self.model.parameters())).device
        with torch.inference_mode():
            for start in range(0, len(rows), self.batch_size):
                batch = self.task.collate(rows[start : start + self.batch_size], device)
                logits = self.task.forward(self.model, batch, {"logits"})["logits"]
                numbers = label_statistics(logits, batch.answers.labels, moments)
                owners = batch.answers.rows.cpu().numpy()
                for index in range(batch.answers.size):
                    yield answer_score(numbers[owners == index], moments=moments, ended=False)
