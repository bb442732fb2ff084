"""Data sets, partitions, prompt templates and tokens."""

from oblivion.registry import Registry

datasets = Registry(
    "dataset",
    {
        "authors": "oblivion.data.authors:load",
        "jsonl": "oblivion.data.jsonl:load",
        "tofu": "oblivion.data.tofu:load",
    },
)
partitions = Registry(
    "partition",
    {
        "dirichlet": "oblivion.data.partition_dirichlet:partition",
        "iid": "oblivion.data.partition_iid:partition",
        "natural": "oblivion.data.partition_natural:partition",
        "shards": "oblivion.data.partition_shards:partition",
    },
)
templates = Registry(
    "template",
    {"chat": "oblivion.data.template_chat:ChatTemplate", "plain": "oblivion.data.template_plain:PlainTemplate"},
    needs=("special_tokens", "prompt", "full"),
)
