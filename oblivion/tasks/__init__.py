"""What is specific to a modality, one per file: how samples become rows, batches, outputs and scores."""

from oblivion.registry import Registry

tasks = Registry(
    "task",
    {"causal_lm": "oblivion.learners:LanguageModels", "linear": "oblivion.models.linear:LinearModels"},
    needs=("locate", "digest", "resolve_dtype", "load", "read_adapter"),
)
"""The models of every task by its name. ``model.name`` names a task of this table, or else a language model."""
get, names, describe = tasks.get, tasks.names, tasks.describe
"""Once it is imported, this package hides the table of the same name at the front door, so it answers as the table."""
