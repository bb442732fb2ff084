"""Prompt templates, one per file."""

from oblivion.registry import Registry

templates = Registry(
    "template",
    {
        "chat": "oblivion.data.templates.chat:ChatTemplate",
        "plain": "oblivion.data.templates.plain:PlainTemplate",
        "verbatim": "oblivion.data.templates.verbatim:VerbatimTemplate",
    },
    needs=("special_tokens", "prompt", "full"),
)
