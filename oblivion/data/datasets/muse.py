"""MUSE: news articles or books that are to be forgotten (Shi et al., 2024, https://arxiv.org/abs/2407.06460).

The files lie as in MUSE's own repository: a folder for each corpus (``news``, ``books``), and in it

- ``raw/forget`` and ``raw/retain1``, the texts that are taught (``.txt``, or ``.json`` with a list of texts);
- ``knowmem/forget_qa.json`` and ``retain_qa.json``, questions with answers, and with ``_icl`` in the name the examples
  that stand before every question;
- ``verbmem/forget.json``, beginnings of texts (``prompt``) with their continuations (``gt``);
- ``privleak/forget.json`` and ``holdout.json``, lists of texts.

A text is a string, or an object with the key ``text``, as in the hub data sets ``muse-bench/MUSE-News`` and ``-Books``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from oblivion.config import DataConfig
from oblivion.data.corpus import Corpus
from oblivion.data.datasets import benchmark
from oblivion.data.row_files import read_row_file
from oblivion.data.rows import digest_of_texts, text_of
from oblivion.errors import ConfigError, InputError, nearest
from oblivion.parameters import check_count
from oblivion.types import Sample
from oblivion.untrusted import read_json, read_text

CORPORA = ("news", "books")
LEAVES = "forget"
"""The client that holds the texts to be forgotten."""
_QUESTION = "Question: {}\nAnswer:"


@benchmark
def load(data: DataConfig, *, clients: int, seed: int, corpus: str = "news", words: int = 100) -> Corpus:
    """Load MUSE's texts; one client holds those to be forgotten, and the others share those that stay.

    Parameters
    ----------
    data : DataConfig
        `path` is the folder with the corpora. The rows have no question, so ``data.template`` has to be ``"verbatim"``.
    clients : int
        The number of clients, at least 2.
    seed
        Not used: nothing is drawn.
    corpus : str, default "news"
        ``news`` or ``books``.
    words : int, default 100
        Texts are cut into rows of so many words.

    Returns
    -------
    Corpus
        Samples ``muse/<corpus>/<file>/<row>`` of the clients ``forget``, ``retain-1``, ``retain-2``, ... The groups are
        those of `evaluation_groups`.

    Raises
    ------
    ConfigError
        If a setting does not go with this data set.
    ParameterError
        If `words` is out of range.
    InputError
        If a file is missing or malformed.
    """
    if not data.path:
        raise ConfigError("data.path is empty; data.name = 'muse' needs the folder with MUSE's corpora")
    if data.template != "verbatim":
        raise ConfigError(f"data.template = '{data.template}': data.name = 'muse' holds texts; set it to 'verbatim'")
    if clients < 2:
        raise ConfigError("federation.clients = 1: data.name = 'muse' needs a client whose texts stay; set 2 or more")
    check_count("words", words, 1)
    root = _root(data.path, corpus)
    goes, stays = ([*_pieces(_texts(root / "raw", name), words)] for name in ("forget", "retain1"))
    if len(stays) < clients - 1:
        raise ConfigError(
            f"federation.clients = {clients}: the texts that stay give {len(stays)} rows; lower it, or "
            "data.parameters.words"
        )
    samples = [_text(f"{corpus}/forget/{n}", text, LEAVES) for n, text in enumerate(goes)]
    for n, text in enumerate(stays):
        owner = f"retain-{n * (clients - 1) // len(stays) + 1}"
        samples.append(_text(f"{corpus}/retain1/{n}", text, owner))
    groups = evaluation_groups(root, "")
    digest = digest_of_texts(
        text for rows in (samples, *groups.values()) for s in rows for text in (s.prompt, s.answer)
    )
    return Corpus(samples=tuple(samples), groups=groups, digest=digest)


def evaluation_groups(folder: str | Path, corpus: str) -> dict[str, tuple[Sample, ...]]:
    """Read the rows on which MUSE's metrics are computed.

    Parameters
    ----------
    folder : str or Path
        The folder with the corpora, or that of one corpus.
    corpus : str
        ``news`` or ``books``; not used where `folder` is that of one corpus.

    Returns
    -------
    dict of str to tuple of Sample
        ``knowmem_forget`` and ``knowmem_retain`` (questions after their examples), ``verbmem``, and the texts
        ``forget`` and ``holdout``. What has no folder is left out. Rows about what is to be forgotten name the client
        ``forget``.

    Raises
    ------
    ConfigError
        If there is no such corpus.
    InputError
        If a file is missing or malformed, or there is none at all.
    """
    root = _root(folder, corpus)
    groups: dict[str, tuple[Sample, ...]] = {}
    if (root / "knowmem").is_dir():
        groups["knowmem_forget"] = _questions(root / "knowmem", "forget", LEAVES)
        groups["knowmem_retain"] = _questions(root / "knowmem", "retain", "")
    if (root / "verbmem").is_dir():
        rows = read_row_file(root / "verbmem" / "forget.json", ("prompt", "gt"), expected=_expected("verbmem")).rows
        groups["verbmem"] = tuple(
            Sample(id=f"muse/verbmem/{n}", client_id=LEAVES, prompt=text_of(row, "prompt"), answer=text_of(row, "gt"))
            for n, row in enumerate(rows)
        )
    if (root / "privleak").is_dir():
        for name, owner in (("forget", LEAVES), ("holdout", "")):
            texts = _texts(root / "privleak", name)
            groups[name] = tuple(_text(f"privleak/{name}/{n}", text, owner) for n, text in enumerate(texts))
    if not groups:
        raise InputError(f"{root}: holds none of the folders knowmem, verbmem and privleak of MUSE")
    return groups


def _root(folder: str | Path, corpus: str) -> Path:
    """Return the folder of one corpus."""
    root = Path(folder)
    if any((root / name).is_dir() for name in ("knowmem", "verbmem", "privleak", "raw")):
        return root
    if corpus not in CORPORA:
        raise ConfigError(f"unknown corpus of MUSE '{corpus}'; {nearest(corpus, CORPORA)}")
    return root / corpus


def _questions(folder: Path, name: str, owner: str) -> tuple[Sample, ...]:
    """Return the questions, each after the same examples."""
    rows, examples = (
        read_row_file(folder / f"{name}_{kind}.json", ("question", "answer"), expected=_expected("knowmem")).rows
        for kind in ("qa", "qa_icl")
    )
    shots = "".join(f"{_QUESTION.format(text_of(row, 'question'))} {text_of(row, 'answer')}\n\n" for row in examples)
    return tuple(
        Sample(
            id=f"muse/knowmem/{name}/{n}",
            client_id=owner,
            prompt=shots + _QUESTION.format(text_of(row, "question")),
            answer=f" {text_of(row, 'answer')}",
        )
        for n, row in enumerate(rows)
    )


def _expected(folder: str) -> str:
    return f"MUSE's file in the folder {folder}"


def _text(name: str, text: str, owner: str) -> Sample:
    return Sample(id=f"muse/{name}", client_id=owner, prompt="", answer=text)


def _texts(folder: Path, name: str) -> list[str]:
    """Return the texts of a file: the whole of a ``.txt``, or the list of a ``.json``."""
    plain, path = folder / f"{name}.txt", folder / f"{name}.json"
    if plain.is_file():
        return [read_text(plain, "MUSE's file of texts")]
    values = read_json(path, f"MUSE's file of texts, {name}.json or {name}.txt")
    if not isinstance(values, list) or not values:
        raise InputError(f"{path}: expected a JSON list of texts")
    return [_of_value(value, f"{path}: item {number}") for number, value in enumerate(values, start=1)]


def _of_value(value: Any, where: str) -> str:
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{where}: expected a text that is not empty, or an object with one under 'text'")
    return text


def _pieces(texts: Iterable[str], words: int) -> Iterator[str]:
    """Cut the texts into pieces of so many words, with single spaces between them."""
    for text in texts:
        split = text.split()
        for start in range(0, len(split), words):
            yield " ".join(split[start : start + words])
