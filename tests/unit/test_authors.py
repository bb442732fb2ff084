"""The generated data set: deterministic, stable under growth, disjoint where it must be."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oblivion.config import DataConfig
from oblivion.data.corpus import Corpus
from oblivion.data.datasets import datasets
from oblivion.data.datasets.authors import (
    NAMES_PER_ROLE,
    ROWS_PER_AUTHOR,
    WRONG_ANSWERS,
    NameBook,
    _authors_at_most,
    client_authors,
    draw_facts,
    load,
    make_author,
    world_authors,
    world_facts,
)
from oblivion.data.datasets.authors_text import (
    CAPITALS,
    FIRST_NAMES,
    SURNAME_ENDS,
    SURNAME_STARTS,
    SYMBOLS,
    TOPICS,
    WORDS,
)
from oblivion.data.federation import load_corpus
from oblivion.errors import ConfigError
from oblivion.seeding import numpy_generator
from oblivion.types import Sample, check_client_id

ROLES = ("world", "rehearsal", "clients", "holdout")
seeds = st.integers(min_value=0, max_value=2**63 - 1)


def corpus(clients: int = 8, seed: int = 0, **parameters: object) -> Corpus:
    return load_corpus(DataConfig(parameters=parameters), clients, seed)


@pytest.fixture(scope="module")
def default() -> Corpus:
    return corpus()


def everything(data: Corpus) -> list[Sample]:
    return [*data.samples, *data.public, *(row for rows in data.groups.values() for row in rows)]


def test_it_is_what_the_registry_names() -> None:
    assert datasets.get("authors") is load
    assert (load.__doc__ or "").split("\n")[0].endswith(".")


def test_the_same_seed_gives_the_same_rows_and_another_seed_others(default: Corpus) -> None:
    assert corpus() == default
    other = corpus(seed=1)
    assert other.digest != default.digest
    assert not {row.path for row in other.samples} & {row.path for row in default.samples}


def test_the_public_world_does_not_depend_on_the_seed(default: Corpus) -> None:
    other = corpus(clients=3, seed=99)
    assert other.public == default.public
    assert other.groups["ra"] == default.groups["ra"]
    assert other.groups["wf"] == default.groups["wf"]
    assert other.groups["holdout"] != default.groups["holdout"]


def test_sizes_of_the_default_data(default: Corpus) -> None:
    sizes = Counter(row.client_id for row in default.samples)
    assert sorted(sizes) == [f"client-{client}" for client in range(8)]
    assert len(set(sizes.values())) >= 4
    # The target is 21 to 49 rows; the last author may end 2 rows short of it or (2 + 7 - 3) rows beyond.
    assert min(sizes.values()) >= 19
    assert max(sizes.values()) <= 55
    assert 28 <= sum(sizes.values()) / 8 <= 42
    assert {group: len(rows) for group, rows in default.groups.items()} == {"holdout": 42, "ra": 24, "wf": 24}
    assert len(default.public) == 48


def test_the_mean_size_follows_the_parameter() -> None:
    sizes = Counter(row.client_id for row in corpus(60, rows_per_client=20).samples)
    # Uniform on 12..28 has standard deviation 4.9; the mean of 60 lies within 20 +- 3 * 4.9 / sqrt(60) = 1.9,
    # and whole authors move it by less than 2 more.
    assert abs(sum(sizes.values()) / 60 - 20) < 3.9


def test_more_clients_change_nothing_about_the_first(default: Corpus) -> None:
    grown = corpus(clients=12)
    first = tuple(row for row in grown.samples if int(row.client_id.split("-")[1]) < 8)
    assert first == default.samples
    assert grown.groups == default.groups
    assert corpus(holdout_authors=9).groups["holdout"][:42] == default.groups["holdout"]


def test_ids_and_owners(default: Corpus) -> None:
    rows = everything(default)
    assert len({row.id for row in rows}) == len(rows)
    for row in rows:
        prefix, slug, number = row.id.split("/")
        assert prefix == "authors"
        assert row.path == (slug,)
        assert number.isdigit()
    for row in default.samples:
        assert check_client_id(row.client_id) == row.client_id
    owners: dict[str, set[str]] = {}
    for row in default.samples:
        owners.setdefault(row.path[0], set()).add(row.client_id)
    assert all(len(clients) == 1 for clients in owners.values())
    assert all(row.client_id == "" for row in [*default.public, *default.groups["holdout"]])


def test_rows_of_an_author_are_numbered_and_ask_different_things(default: Corpus) -> None:
    by_author: dict[str, list[Sample]] = {}
    for row in default.samples:
        by_author.setdefault(row.path[0], []).append(row)
    low, high = ROWS_PER_AUTHOR
    for slug, rows in by_author.items():
        assert low <= len(rows) <= high
        assert [row.id for row in rows] == [f"authors/{slug}/{index}" for index in range(len(rows))]
        assert len({row.prompt for row in rows}) == len(rows)
    assert {len(rows) for rows in by_author.values()} == {5, 6, 7}


def test_wrong_answers_are_five_distinct_and_wrong(default: Corpus) -> None:
    for row in everything(default):
        assert len(set(row.wrong_answers)) == len(row.wrong_answers) == WRONG_ANSWERS
        assert row.answer not in row.wrong_answers
        assert row.paraphrase not in row.wrong_answers
        assert row.paraphrase != row.answer


def pattern(template: str) -> re.Pattern[str]:
    text = re.escape(template)
    text = re.sub(r"\\\{(\d)\\\}", r"(?P<f\1>\\w+)", text)
    return re.compile(re.sub(r"\\\{last\\\}", r"\\w+", text))


def test_every_fact_of_a_wrong_answer_differs_and_the_paraphrase_keeps_them_all(default: Corpus) -> None:
    for row in [*default.samples, *default.groups["holdout"]]:
        topic = next(t for t in TOPICS if pattern(t.answer).fullmatch(row.answer))
        said = pattern(topic.answer).fullmatch(row.answer)
        again = pattern(topic.paraphrase).fullmatch(row.paraphrase)
        assert said is not None
        assert again is not None
        assert said.groupdict() == again.groupdict()
        for answer in row.wrong_answers:
            wrong = pattern(topic.paraphrase).fullmatch(answer)
            assert wrong is not None
            assert all(wrong[key] != value for key, value in said.groupdict().items())


def test_public_rows_have_wrong_answers_in_the_wording_of_the_answer(default: Corpus) -> None:
    for row in default.groups["ra"]:
        topic = next(t for t in TOPICS if pattern(t.answer).fullmatch(row.answer))
        assert all(pattern(topic.answer).fullmatch(answer) for answer in row.wrong_answers)
    for row in default.groups["wf"]:
        assert all(answer.rsplit(" ", 1)[0] == row.answer.rsplit(" ", 1)[0] for answer in row.wrong_answers)


def test_public_facts_are_true_and_their_wrong_answers_are_false() -> None:
    rows = world_facts()
    assert len(rows) == len(CAPITALS) + len(SYMBOLS) == 48
    france = next(row for row in rows if "France" in row.prompt)
    assert france.prompt == "What is the capital of France?"
    assert france.answer == "The capital of France is Paris."
    assert all("Paris" not in answer for answer in france.wrong_answers)
    gold = next(row for row in rows if "gold" in row.prompt)
    assert gold.answer == "The symbol of gold is Au."


def test_nobody_shares_a_name(default: Corpus) -> None:
    private = {row.path for row in default.samples}
    held_out = {row.path for row in default.groups["holdout"]}
    ra = {row.path for row in default.groups["ra"]}
    public = {row.path for row in default.public}
    facts = {("facts",)}
    parts = [private, held_out, ra, public - facts]
    assert sum(len(part) for part in parts) == len(set().union(*parts))
    assert {author.slug for author in world_authors()} == {path[0] for path in ra | public - facts}
    prompts = [row.prompt for row in everything(default)]
    assert len(set(prompts)) == len(prompts)


def test_the_four_parts_of_the_name_space_are_disjoint_and_fill_it() -> None:
    books = {role: NameBook(role, 3) for role in ROLES}
    names = {role: {book.at(place) for place in range(NAMES_PER_ROLE)} for role, book in books.items()}
    assert all(len(part) == NAMES_PER_ROLE for part in names.values())
    assert len(set().union(*names.values())) == len(FIRST_NAMES) * len(SURNAME_STARTS) * len(SURNAME_ENDS)


def test_surnames_are_unambiguous() -> None:
    # If two pairs of parts made one surname, two different names would read the same.
    surnames = {start + end for start in SURNAME_STARTS for end in SURNAME_ENDS}
    assert len(surnames) == len(SURNAME_STARTS) * len(SURNAME_ENDS)


def test_word_lists_hold_each_word_once_and_suit_the_article() -> None:
    for words in (FIRST_NAMES, SURNAME_STARTS, SURNAME_ENDS, *WORDS.values()):
        assert len(set(words)) == len(words)
    for kind in ("trait", "job", "animal"):
        assert all(word[0] not in "aeiou" for word in WORDS[kind])
    for topic in TOPICS:
        for text in (topic.answer, topic.paraphrase):
            slots = re.findall(r"\{(\d)\}", text)
            assert slots == [str(index) for index in range(len(topic.slots))], "facts stand in slot order"


def test_the_facts_of_an_answer_cannot_be_guessed() -> None:
    # Uniform draws: the chance of guessing all facts is at most the product of 1 / (words left): 2^-18.5 for a
    # birth (26 days, 10 months, 38 years, 38 cities left), the least of all; below 3e-6.
    for topic in TOPICS:
        bits = sum(math.log2(len(WORDS[slot]) - 2) for slot in topic.slots)
        assert bits > -math.log2(3e-6)


def test_answers_are_full_sentences_of_moderate_length(default: Corpus) -> None:
    for row in everything(default):
        assert row.prompt.endswith("?")
        assert row.answer.endswith(".")
        assert 5 <= len(row.answer.split()) <= 20
        assert "{" not in row.prompt + row.answer + row.paraphrase + "".join(row.wrong_answers)


def test_the_digest_is_sha256_over_canonical_json(default: Corpus) -> None:
    groups = {"samples": default.samples, "public": default.public, **default.groups}
    plain = {name: [asdict(row) for row in rows] for name, rows in groups.items()}
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    assert default.digest == hashlib.sha256(text.encode("ascii")).hexdigest()


def test_a_single_client_and_no_held_out_author() -> None:
    data = corpus(clients=1, rows_per_client=1, holdout_authors=0)
    assert {row.client_id for row in data.samples} == {"client-0"}
    assert len({row.path for row in data.samples}) == 1
    assert data.groups["holdout"] == ()


def test_kebab_case_parameters_are_the_same() -> None:
    data = DataConfig(parameters={"rows-per-client": 20, "holdout-authors": 2})
    assert load_corpus(data, clients=2, seed=0) == corpus(2, rows_per_client=20, holdout_authors=2)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rows_per_clients": 3}, "did you mean 'rows_per_client'"),
        (
            {"rows_per_client": 0},
            r"'authors' with rows_per_client = 0 is .* must be a whole number of at least 1",
        ),
        ({"rows_per_client": True}, r"rows_per_client = True"),
        ({"rows_per_client": 3.5}, r"rows_per_client = 3.5"),
        ({"holdout_authors": -1}, r"holdout_authors = -1 is not allowed; it must be a whole number of at least 0"),
        ({"holdout_authors": 10**6}, r"ask for fewer"),
    ],
)
def test_wrong_parameters_are_refused(parameters: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        corpus(**parameters)


@pytest.mark.parametrize("clients", [0, 10**6])
def test_a_wrong_number_of_clients_is_refused(clients: int) -> None:
    with pytest.raises(ConfigError, match=rf"federation.clients = {clients}"):
        corpus(clients=clients)


@settings(max_examples=15)
@given(seed=seeds, rows=st.integers(1, 60), client=st.integers(0, 50))
def test_a_client_stays_within_its_block_of_names(seed: int, rows: int, client: int) -> None:
    names = NameBook("clients", 1)
    authors = client_authors(names, seed, client, rows)
    # A client that took more names than its block holds would take its neighbour's.
    assert 1 <= len(authors) <= _authors_at_most(rows)
    assert authors == client_authors(names, seed, client, rows)
    assert len({author.slug for author in authors}) == len(authors)


@settings(max_examples=30)
@given(seed=seeds, topic=st.sampled_from(TOPICS))
def test_drawn_facts_are_words_of_their_list_without_repetition(seed: int, topic: object) -> None:
    slots = topic.slots  # type: ignore[attr-defined]
    rng = numpy_generator(seed, "test")
    facts = draw_facts(rng, slots)
    other = draw_facts(rng, slots, facts)
    for drawn in (facts, other):
        assert all(word in WORDS[slot] for word, slot in zip(drawn, slots, strict=True))
        assert len(set(drawn)) == len(drawn)
    assert all(left != right for left, right in zip(facts, other, strict=True))


@settings(max_examples=15)
@given(seed=seeds, rows=st.one_of(st.none(), st.integers(1, len(TOPICS))))
def test_an_author_is_a_function_of_name_and_generator(seed: int, rows: int | None) -> None:
    one = make_author("Ada", "Belmont", numpy_generator(seed, "test"), rows)
    same = make_author("Ada", "Belmont", numpy_generator(seed, "test"), rows)
    renamed = make_author("Omar", "Belmont", numpy_generator(seed, "test"), rows)
    assert one == same
    assert one.slug == "ada-belmont"
    assert all("Ada Belmont" in row.prompt for row in one.rows)
    assert rows is None or len(one.rows) == rows
    # The name is in the question and the id alone (answers use the surname): the facts are the generator's.
    strip = [replace(row, id="", path=(), prompt="") for row in one.rows]
    assert strip == [replace(row, id="", path=(), prompt="") for row in renamed.rows]
