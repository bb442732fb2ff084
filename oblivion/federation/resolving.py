"""What of a config is ``auto`` and follows from the base model's settings, without loading the model."""

from __future__ import annotations

from oblivion.aggregation import scheme_of
from oblivion.config import RunConfig
from oblivion.learners import models_of


def with_dtype(config: RunConfig) -> RunConfig:
    """Return the config with the dtype of the weights resolved; server and hosts come to the same.

    A scheme that keeps a residual folds it into the weights, and bfloat16 would lose most of it.
    """
    keeps_residual = bool(scheme_of(config).state_fields) and config.model.dtype == "auto"
    dtype = "float32" if keeps_residual else models_of(config.model).resolve_dtype(config.model)
    return config.model_copy(update={"model": config.model.model_copy(update={"dtype": dtype})})
