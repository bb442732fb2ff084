"""The learner of a run, found from its config: the model, and the task that it is trained on."""

from __future__ import annotations

from oblivion.config import RunConfig
from oblivion.models.resident import ResidentModel, load_resident


def learner_of(config: RunConfig) -> ResidentModel:
    """Return the learner that a config names; a process keeps the last one, so that nobody holds a second copy.

    Raises
    ------
    OblivionError
        If the model cannot be loaded, or does not go with the config.
    """
    return load_resident(config.model, config.lora, config.train.max_length, config.data.template)
