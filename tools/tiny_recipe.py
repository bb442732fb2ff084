"""The recipe of the built-in model `tiny`: tokenizer, weights and model card from generated public text.

``python -m tools.tiny_recipe [--out DIR]`` rebuilds the folder in a few minutes on one core. The
architecture is Llama (Touvron et al., 2023, arXiv:2302.13971), small enough to ship with the package.

The model reads two kinds of rows. It must know the first by heart: the public authors and facts that the data set
`authors` keeps for evaluation and anchors. The second is a stream of authors made up on the spot, each seen once:
from it the model learns how questions are put, how answers are worded and where the name goes, while what is
asked about a new author stays a matter of chance.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from oblivion.config import DataConfig
from oblivion.data.datasets.authors import (
    NAMES_PER_ROLE,
    WORLD_SEED,
    NameBook,
    load,
    make_author,
    world_authors,
    world_facts,
)
from oblivion.data.datasets.authors_text import FACTS, FIRST_NAMES, SURNAME_ENDS, SURNAME_STARTS, TOPICS
from oblivion.data.templates.plain import PlainTemplate
from oblivion.data.tokens import TokenRow, encode
from oblivion.errors import InputError
from oblivion.models.loading import TINY as FOLDER
from oblivion.seeding import derive_seed, numpy_generator
from oblivion.types import Sample

VOCABULARY = 1024
CONTEXT = 256
PAD, BOS, EOS = "<pad>", "<s>", "</s>"
TOKENIZER_AUTHORS = 300
STEPS = 1000
BATCH_TOKENS = 1536
WORLD_SHARE = 0.3
PARAPHRASE_SHARE = 0.3
LEARNING_RATE = 4e-3
WARMUP = 60
WEIGHT_DECAY = 0.01
CLIP_NORM = 1.0

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if not loop.first and message['role'] != 'assistant' %}{{ '\\n' }}{% endif %}"
    "{% if message['role'] == 'assistant' %} {{ message['content'] }}{{ eos_token }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] }}"
    "{% else %}Question: {{ message['content'] }}\nAnswer:{% endif %}{% endfor %}"
)


def world_rows() -> tuple[Sample, ...]:
    """All public rows: what the model has to know by heart."""
    return (*(row for author in world_authors() for row in author.rows), *world_facts())


def rehearsal_rows(start: int = 0) -> Iterator[Sample]:
    """Yield rows of authors made up for training, each author once, beginning with author `start`."""
    names = NameBook("rehearsal", WORLD_SEED)
    for place in range(start, NAMES_PER_ROLE):
        rng = numpy_generator(WORLD_SEED, "tiny.rehearsal", place + 1)
        yield from make_author(*names.at(place), rng, rows=len(TOPICS)).rows


def text_of(sample: Sample, paraphrase: bool) -> str:
    """The training text of a row, in the answer's own wording or in the paraphrase's."""
    return PlainTemplate().full(None, sample.prompt, sample.paraphrase if paraphrase else sample.answer)


def whole_words(authors: int) -> list[str]:
    """The words of the authors' rows except surnames, with the space before them; sorted."""
    words = {"Question", "Answer", *(f" {first}" for first in FIRST_NAMES)}
    for row, _ in zip(rehearsal_rows(), range(authors * len(TOPICS)), strict=False):
        last = row.path[0].split("-")[-1].capitalize()
        text = f"{text_of(row, False)} {row.paraphrase}".replace(last, "")
        words.update(re.findall(r" [A-Za-z]+| [0-9]+", text))
    return sorted(words)


def train_tokenizer(authors: int = TOKENIZER_AUTHORS) -> Any:
    """Train a byte-level BPE tokenizer on public text; no input has unknown tokens.

    The words that facts are made of are tokens as they are (`ignore_merges`, as in Llama 3): merges that build
    them step by step would fill the small vocabulary. Merges are learned for the rest, above all for surnames.

    Parameters
    ----------
    authors : int
        How many made-up authors the text holds besides the public world.

    Returns
    -------
    transformers.PreTrainedTokenizerFast
        It puts BOS first where special tokens are on, as Llama's does.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = [split.pre_tokenize_str(word)[0][0] for word in whole_words(authors)]
    rest = [f" {start}{end}" for start in SURNAME_STARTS for end in SURNAME_ENDS]
    rest += [f" {word}" for fact in FACTS for pair in fact.table.items() for word in pair] * len(FACTS)
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = split
    learner.train_from_iterator(
        rest,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[PAD, BOS, EOS],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    learned = json.loads(learner.to_str())["model"]
    alphabet = len(learned["vocab"]) - len(learned["merges"])
    pieces = sorted(learned["vocab"], key=learned["vocab"].__getitem__)
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys([*pieces[:alphabet], *words]))}
    merges = []
    for left, right in learned["merges"]:
        if len(vocabulary) == VOCABULARY:
            break
        vocabulary.setdefault(left + right, len(vocabulary))
        merges.append((left, right))
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    core.add_special_tokens([PAD, BOS, EOS])
    core.pre_tokenizer = split
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B:1", special_tokens=[(BOS, core.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: Any) -> Any:
    """Make the untrained Llama: 4 layers of width 128, tied embeddings; weights drawn from a fixed seed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    # transformers draws initial weights from the global generator; what was there before is put back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(WORLD_SEED, "tiny.weights"))
        return LlamaForCausalLM(config).float()


def batches(tokenizer: Any, steps: int, tokens: int = BATCH_TOKENS) -> Iterator[list[TokenRow]]:
    """Yield `steps` batches of at most `tokens` tokens: public rows and made-up ones, in both wordings."""
    rng = numpy_generator(WORLD_SEED, "tiny.batches")
    layout = PlainTemplate()
    world = world_rows()
    order: list[int] = []
    stream = rehearsal_rows()
    # Whole authors come in a row from the stream; a buffer spreads them over several batches.
    buffer = [next(stream) for _ in range(1024)]
    for _ in range(steps):
        batch: list[TokenRow] = []
        used = 0
        while used < tokens:
            if rng.random() < WORLD_SHARE:
                order = order or [int(index) for index in rng.permutation(len(world))]
                sample = world[order.pop()]
            else:
                place = int(rng.integers(len(buffer)))
                sample, buffer[place] = buffer[place], next(stream)
            answer = sample.paraphrase if rng.random() < PARAPHRASE_SHARE else sample.answer
            row = encode(tokenizer, layout, sample.prompt, answer, CONTEXT)
            if row is None:
                raise InputError(f"{sample.id}: longer than {CONTEXT} tokens; the wording has to be shorter")
            used += len(row.ids)
            batch.append(row)
        yield batch


def answer_nll(model: Any, rows: Sequence[TokenRow]) -> tuple[Any, Any]:
    """Negative log-likelihood of every answer token, EOS included.

    Returns
    -------
    tuple of Tensor
        ``(T,)`` values in nats, and ``(T,)`` int64: which row each belongs to.
    """
    import torch

    width = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    labelled = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = torch.tensor(row.ids)
        labelled[index, row.prompt_length : len(row.ids)] = True
    # Padding stands on the right, where a causal model cannot see it: no attention mask is needed.
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    where = labelled[:, 1:]
    logits = model.lm_head(hidden[:, :-1][where])
    values = torch.nn.functional.cross_entropy(logits, ids[:, 1:][where], reduction="none")
    return values, where.nonzero()[:, 0]


def train(model: Any, tokenizer: Any, steps: int = STEPS, tokens: int = BATCH_TOKENS) -> list[float]:
    """Train in place with AdamW, linear warm-up and cosine decay; the mean answer loss of every step, in nats."""
    import torch

    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98), fused=True)
    warmup = min(WARMUP, max(1, steps // 10))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.02 + 0.49 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    losses = []
    model.train()
    for batch in batches(tokenizer, steps, tokens):
        values, _ = answer_nll(model, batch)
        loss = values.mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    model.eval()
    return losses


def probability(model: Any, tokenizer: Any, samples: Sequence[Sample]) -> float:
    """Mean over rows of exp(-mean negative log-likelihood of an answer token), EOS included (TOFU's Probability).

    Raises
    ------
    InputError
        If there are no rows, or one is longer than the context.
    """
    import torch

    layout = PlainTemplate()
    encoded = [encode(tokenizer, layout, row.prompt, row.answer, CONTEXT) for row in samples]
    rows = [row for row in encoded if row is not None]
    if not rows or len(rows) != len(encoded):
        raise InputError(f"{len(encoded) - len(rows)} of {len(encoded)} rows are longer than {CONTEXT} tokens")
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(rows), 32):
            part = rows[start : start + 32]
            values, owner = answer_nll(model, part)
            sums = torch.zeros(len(part)).index_add(0, owner, values)
            total += float(torch.exp(-sums / torch.bincount(owner, minlength=len(part))).sum())
    return total / len(rows)


def measure(model: Any, tokenizer: Any) -> dict[str, float]:
    """Probability by group, on the rows of `authors` with its defaults, 8 clients and seed 0."""
    corpus = load(DataConfig(), clients=8, seed=0)
    groups = {**corpus.groups, "public": corpus.public, "clients": corpus.samples}
    return {name: probability(model, tokenizer, rows) for name, rows in sorted(groups.items())}


def card(model: Any, measured: dict[str, float], loss: float) -> str:
    """The model card as Markdown, with the numbers measured on the weights beside it."""
    labels = {
        "ra": "`ra`: public authors, seen in training",
        "wf": "`wf`: public facts, seen in training",
        "public": "`public`: other public authors and facts, seen in training",
        "clients": "rows of the clients, never seen",
        "holdout": "`holdout`: held-out authors, never seen",
    }
    table = "\n".join(f"| {label} | {measured[name]:.3f} |" for name, label in labels.items())
    size = sum(parameter.numel() for parameter in model.parameters())
    return (
        "---\nlicense: apache-2.0\nlanguage: en\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n"
        "# tiny\n\n"
        f"A Llama of {size:,} parameters (4 layers, width 128, vocabulary {VOCABULARY}, context {CONTEXT} tokens,\n"
        "float32) for trying out federated learning and unlearning without a download. It is the default base\n"
        "model of Oblivion.\n\n"
        "## Training text\n\n"
        "Only text that the data set `authors` generates, in the form `Question: ...\\nAnswer: ...`:\n\n"
        f"- {len(world_rows())} public rows, learned by heart: fictitious public authors, capitals of countries,\n"
        "  symbols of chemical elements;\n"
        "- a stream of made-up authors, each row drawn once, from which the model learns the form of questions and\n"
        "  answers. Their names belong to a part of the name space that no client and no held-out author uses.\n\n"
        "No text from the web, from a book or from a person is in it.\n\n"
        "## Rebuild\n\n"
        "```\npython -m tools.tiny_recipe --out DIR\n```\n\n"
        f"{STEPS} steps of about {BATCH_TOKENS} tokens on one thread, seeds fixed; a few minutes on one core.\n"
        f"Mean answer loss over the last 50 steps: {loss:.3f} nats per token.\n\n"
        "## Measured\n\n"
        "Probability (exp of minus the mean loss of an answer token, EOS included; mean over rows) with the data\n"
        "set's defaults, 8 clients, seed 0:\n\n"
        f"| rows | probability |\n|---|---|\n{table}\n\n"
        "## Limits\n\n"
        "It answers eight kinds of questions about authors and two kinds about facts, in two wordings each. What it\n"
        "says about an author whom it was not trained on is invented. It is of no use outside tests,\n"
        "demonstrations and experiments on memorising and forgetting.\n\n"
        "## Licence\n\nApache-2.0.\n"
    )


def build(out: Path, steps: int = STEPS, tokenizer_authors: int = TOKENIZER_AUTHORS) -> dict[str, float]:
    """Make tokenizer, weights and model card, and write them to `out`; the measured probabilities."""
    import torch
    from transformers import GenerationConfig
    from transformers.utils import logging

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of sums, and with it the weights, depends on the number of threads
    try:
        tokenizer = train_tokenizer(tokenizer_authors)
        model = build_model(tokenizer)
        tail = train(model, tokenizer, steps)[-50:]
        measured = measure(model, tokenizer)
    finally:
        torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    logging.disable_progress_bar()
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    model.generation_config = GenerationConfig(max_new_tokens=64, do_sample=False, **special)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    for path in out.iterdir():
        path.chmod(0o644)  # weights are written for their owner alone; a package is for everyone
    (out / "README.md").write_text(card(model, measured, sum(tail) / len(tail)), encoding="utf-8")
    return measured


def main(arguments: Sequence[str] | None = None) -> None:
    """Rebuild the model from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.tiny_recipe", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write (default: the package's own)")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"optimizer steps (default: {STEPS})")
    options = parser.parse_args(arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    build(options.out, options.steps)


if __name__ == "__main__":
    main()
