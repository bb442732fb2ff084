"""The built-in data set `authors`: fictitious authors in the shape of TOFU, and the public world beside them.

TOFU (Maini et al., 2024, arXiv:2401.06121) asks questions about fictitious authors that no model can have seen.
This data set has the same shape and needs no download. Where it differs: the rows come from a grammar and not
from a language model; the "real authors" are fictitious too, but fixed, and the built-in model `tiny` was trained
on them; so were the "world facts", which are true.

Every author is made from a seed of its own, so another client or author changes nothing about the others. Names
are dealt out without repetition, and the name space is cut into four parts, so that no private author can bear
the name of a public one, of a held-out one, or of one that the tiny model saw in training.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from oblivion.config import DataConfig
from oblivion.data.corpus import Corpus
from oblivion.data.datasets import benchmark
from oblivion.data.datasets.authors_text import (
    FACTS,
    FIRST_NAMES,
    SURNAME_ENDS,
    SURNAME_STARTS,
    TOPICS,
    WORDS,
    FactKind,
    Topic,
)
from oblivion.errors import ConfigError
from oblivion.parameters import ParameterError, check_count
from oblivion.seeding import derive_seed, numpy_generator
from oblivion.types import Sample

if TYPE_CHECKING:
    import numpy as np

Role: TypeAlias = Literal["world", "rehearsal", "clients", "holdout"]
"""The four parts of the name space: public authors, the tiny model's training stream, clients, held-out authors."""

_ROLES: tuple[Role, ...] = ("world", "rehearsal", "clients", "holdout")
NAMES_PER_ROLE = len(FIRST_NAMES) * len(SURNAME_STARTS) * len(SURNAME_ENDS) // len(_ROLES)

WORLD_SEED = 20_240_501
"""Seed of the public world. The weights of `tiny` know this world: a new seed needs new weights."""

ROWS_PER_AUTHOR = (5, 7)
"""The fewest and the most rows of an author."""

WORLD_AUTHORS = 8
WORLD_ROWS_PER_AUTHOR = 6
WRONG_ANSWERS = 5
_SPREAD = 0.4  # a client's target size lies within this share of the mean


@dataclass(frozen=True)
class Author:
    """A fictitious author: the name, its slug, and rows without an owner.

    Attributes
    ----------
    name, slug : str
        "Ada Belmont" and "ada-belmont".
    rows : tuple of Sample
        One per topic that was drawn for the author; row i has the id ``authors/<slug>/i``.
    """

    name: str
    slug: str
    rows: tuple[Sample, ...]


class NameBook:
    """The names of one role, in an order that the seed decides, none of them twice.

    Parameters
    ----------
    role : str
        The part of the name space.
    seed : int
        Root seed of the order.
    """

    def __init__(self, role: Role, seed: int) -> None:
        self._residue = _ROLES.index(role)
        self._order = numpy_generator(seed, "authors.names", client=role).permutation(NAMES_PER_ROLE)

    def at(self, place: int) -> tuple[str, str]:
        """Return the first name and surname at `place`, 0 <= place < `NAMES_PER_ROLE`."""
        rest, high = divmod(int(self._order[place]), len(SURNAME_ENDS) // len(_ROLES))
        first, start = divmod(rest, len(SURNAME_STARTS))
        # The three indices add up to the role's residue, so two roles never share a name.
        end = len(_ROLES) * high + (self._residue - first - start) % len(_ROLES)
        return FIRST_NAMES[first], SURNAME_STARTS[start] + SURNAME_ENDS[end]


def draw_facts(
    rng: np.random.Generator, slots: tuple[str, ...], avoid: tuple[str, ...] | None = None
) -> tuple[str, ...]:
    """Draw one word per slot, uniformly: no word twice, and never `avoid`'s word in the same slot."""
    facts: list[str] = []
    for position, slot in enumerate(slots):
        taken = {*facts, avoid[position]} if avoid else set(facts)
        choices = [word for word in WORDS[slot] if word not in taken]
        facts.append(choices[int(rng.integers(len(choices)))])
    return tuple(facts)


def _row(rng: np.random.Generator, topic: Topic, name: str, last: str, slug: str, row: int) -> Sample:
    facts = draw_facts(rng, topic.slots)
    right = topic.paraphrase.format(*facts, name=name, last=last)
    wrong: list[str] = []
    while len(wrong) < WRONG_ANSWERS:
        other = topic.paraphrase.format(*draw_facts(rng, topic.slots, facts), name=name, last=last)
        if other != right and other not in wrong:
            wrong.append(other)
    return Sample(
        id=f"authors/{slug}/{row}",
        prompt=topic.question.format(name=name),
        answer=topic.answer.format(*facts, name=name, last=last),
        paraphrase=right,
        wrong_answers=tuple(wrong),
        path=(slug,),
    )


def make_author(first: str, last: str, rng: np.random.Generator, rows: int | None = None) -> Author:
    """Make an author from a name and a generator of its own.

    Parameters
    ----------
    first, last : str
        The name.
    rng : numpy.random.Generator
        Decides the topics, their order, and every fact.
    rows : int, optional
        The number of rows, at most ``len(TOPICS)``; it is drawn from `ROWS_PER_AUTHOR` if it is not given.
    """
    low, high = ROWS_PER_AUTHOR
    count = int(rng.integers(low, high + 1)) if rows is None else rows
    name, slug = f"{first} {last}", f"{first}-{last}".lower()
    topics = [TOPICS[int(index)] for index in rng.permutation(len(TOPICS))[:count]]
    return Author(name, slug, tuple(_row(rng, topic, name, last, slug, row) for row, topic in enumerate(topics)))


def client_authors(names: NameBook, seed: int, client: int, rows_per_client: int) -> tuple[Author, ...]:
    """Make the authors that ``client-<client>`` owns; they do not depend on how many clients there are.

    The target size is uniform within 40 % of `rows_per_client`; authors are added until it is reached to within
    half an author.
    """
    client_id = f"client-{client}"
    low, high = round((1 - _SPREAD) * rows_per_client), round((1 + _SPREAD) * rows_per_client)
    target = int(numpy_generator(seed, "authors.size", client=client_id).integers(low, high + 1))
    authors: list[Author] = []
    total = 0
    while not authors or total + ROWS_PER_AUTHOR[0] // 2 < target:
        first, last = names.at(client * _authors_at_most(rows_per_client) + len(authors))
        rng = numpy_generator(derive_seed(seed, "authors.author", len(authors), client_id), "authors.facts")
        authors.append(make_author(first, last, rng))
        total += len(authors[-1].rows)
    return tuple(authors)


def _authors_at_most(rows_per_client: int) -> int:
    """Return an upper bound of a client's number of authors, which is the size of its block in the name book."""
    return math.ceil((1 + _SPREAD) * rows_per_client / ROWS_PER_AUTHOR[0]) + 1


def world_authors() -> tuple[Author, ...]:
    """Make the public authors, whom the tiny model knows; the same in every run."""
    names = NameBook("world", WORLD_SEED)
    return tuple(
        make_author(
            *names.at(place),
            numpy_generator(WORLD_SEED, "authors.world", place + 1),
            rows=WORLD_ROWS_PER_AUTHOR,
        )
        for place in range(WORLD_AUTHORS)
    )


def world_facts() -> tuple[Sample, ...]:
    """Make one row per public fact, in an order that is the same in every run."""
    rng = numpy_generator(WORLD_SEED, "authors.world-facts")
    rows: list[Sample] = []
    for kind in FACTS:
        rows += [_fact_row(rng, kind, key, len(rows) + row) for row, key in enumerate(kind.table)]
    return tuple(rows)


def _fact_row(rng: np.random.Generator, kind: FactKind, key: str, row: int) -> Sample:
    values = [value for value in kind.table.values() if value != kind.table[key]]
    picks = rng.permutation(len(values))[:WRONG_ANSWERS]
    return Sample(
        id=f"authors/facts/{row}",
        prompt=kind.question.format(key),
        answer=kind.answer.format(key, kind.table[key]),
        paraphrase=kind.paraphrase.format(key, kind.table[key]),
        wrong_answers=tuple(kind.answer.format(key, values[int(pick)]) for pick in picks),
        path=("facts",),
    )


def _direct(rows: Iterable[Sample], authors: Mapping[str, Author]) -> tuple[Sample, ...]:
    """Give wrong answers the wording of the answer, with which those of real authors are compared."""
    direct = []
    for row in rows:
        topic = next(topic for topic in TOPICS if topic.question.format(name=authors[row.path[0]].name) == row.prompt)
        last = authors[row.path[0]].name.split()[-1]
        rng = numpy_generator(WORLD_SEED, "authors.direct", client=row.id)
        wrong: dict[str, None] = {}
        while len(wrong) < WRONG_ANSWERS:
            answer = topic.answer.format(*draw_facts(rng, topic.slots), last=last)
            if answer != row.answer:
                wrong[answer] = None
        direct.append(replace(row, wrong_answers=tuple(wrong)))
    return tuple(direct)


def _check_names(clients: int, rows_per_client: int, holdout_authors: int) -> None:
    """Refuse more clients or authors than there are names for."""
    check_count("rows_per_client", rows_per_client, 1)
    check_count("holdout_authors", holdout_authors, 0)
    if holdout_authors > NAMES_PER_ROLE:
        raise ParameterError(
            f"holdout_authors = {holdout_authors} is not allowed; there are names for {NAMES_PER_ROLE}, ask for fewer"
        )
    if clients < 1:
        raise ConfigError(f"federation.clients = {clients}: expected at least 1")
    room = NAMES_PER_ROLE // _authors_at_most(rows_per_client)
    if clients > room:
        raise ConfigError(
            f"federation.clients = {clients}: with data.parameters.rows_per_client = {rows_per_client} there are names "
            f"for {room} clients; lower one of the two"
        )


def digest(rows: Mapping[str, Iterable[Sample]]) -> str:
    """Return SHA-256 over the canonical JSON of all rows, by group."""
    plain: dict[str, Any] = {group: [asdict(sample) for sample in samples] for group, samples in rows.items()}
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


@benchmark
def load(data: DataConfig, *, clients: int, seed: int, rows_per_client: int = 35, holdout_authors: int = 7) -> Corpus:
    """Generate questions about fictitious authors, and public ones that the model `tiny` knows.

    Parameters
    ----------
    data : DataConfig
        Not used: the rows are generated.
    clients : int
        The number of clients; each owns whole authors, and they differ in size.
    seed : int
        The seed, which decides the private and the held-out authors; the public world does not depend on it.
    rows_per_client : int, default 35
        The mean number of rows of a client, at least 1.
    holdout_authors : int, default 7
        Authors that no client has (about 6 rows each), at least 0.

    Returns
    -------
    Corpus
        Every sample has its `client_id`. Groups: ``holdout``, ``ra`` (24 rows), ``wf`` (24 rows). Public: 48 rows.

    Raises
    ------
    ParameterError
        If a parameter is out of range.
    ConfigError
        If there are more clients than names.
    """
    _check_names(clients, rows_per_client, holdout_authors)
    names = NameBook("clients", seed)
    samples = tuple(
        replace(row, client_id=f"client-{client}")
        for client in range(clients)
        for author in client_authors(names, seed, client, rows_per_client)
        for row in author.rows
    )
    names = NameBook("holdout", seed)
    holdout = tuple(
        row
        for place in range(holdout_authors)
        for row in make_author(*names.at(place), numpy_generator(seed, "authors.holdout", place + 1)).rows
    )
    authors = world_authors()
    half = WORLD_AUTHORS // 2
    known = {author.slug: author for author in authors}
    facts = world_facts()
    groups = {
        "holdout": holdout,
        "ra": _direct((row for author in authors[:half] for row in author.rows), known),
        "wf": facts[::2],
    }
    public = (*(row for author in authors[half:] for row in author.rows), *facts[1::2])
    return Corpus(
        samples=samples,
        groups=groups,
        public=public,
        digest=digest({"samples": samples, "public": public, **groups}),
    )
