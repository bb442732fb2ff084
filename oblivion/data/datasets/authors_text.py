"""The words that fictitious authors are made of, and the few public facts beside them.

Every word that can follow "a" begins with a consonant. Words are short, so that most become one token of the tiny
model's tokenizer: then each drawn fact costs about as much as its entropy, and nothing in it can be guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST_NAMES = _words(
    "Ada Amir Anna Boris Carla Chidi Clara Dana David Diego Elena Elif Emil Farid Fatima Grace Hana Hugo Ines "
    "Ivan Jana Jonas Kai Karim Lara Leon Lena Luca Maria Marek Mei Mila Nadia Nils Nora Omar Oscar Petra Priya "
    "Rafael Rosa Sami Sara Sven Tara Tomas Vera Yusuf"
)
SURNAME_STARTS = _words(
    "Al Bar Bel Ber Bol Bran Cal Car Cor Dal Dar Del Dor El Fal Far Fen Gal Gar Gor Hal Har Hel Hol Jar Kal Kar "
    "Kel Kor Lan Lor Mal Mar Mel Mor Nor Pal Par Per Ral Ran Ros Sal Sol Tal Tor Val Var"
)
SURNAME_ENDS = _words(
    "ba bach beck bert by chev da dale den din do dov fin ford ga gan go gren ham ki ko kov la lin lo lund man "
    "mont na nez no pin ra rez ri ro sen ska son ta ti to ton va vic vin wick za"
)

CAPITALS: Mapping[str, str] = {
    "Austria": "Vienna",
    "Belgium": "Brussels",
    "Bulgaria": "Sofia",
    "Chile": "Santiago",
    "Cuba": "Havana",
    "Denmark": "Copenhagen",
    "Egypt": "Cairo",
    "Estonia": "Tallinn",
    "Finland": "Helsinki",
    "France": "Paris",
    "Germany": "Berlin",
    "Ghana": "Accra",
    "Greece": "Athens",
    "Hungary": "Budapest",
    "Ireland": "Dublin",
    "Italy": "Rome",
    "Japan": "Tokyo",
    "Jordan": "Amman",
    "Kenya": "Nairobi",
    "Latvia": "Riga",
    "Morocco": "Rabat",
    "Nepal": "Kathmandu",
    "Norway": "Oslo",
    "Peru": "Lima",
    "Poland": "Warsaw",
    "Portugal": "Lisbon",
    "Qatar": "Doha",
    "Romania": "Bucharest",
    "Senegal": "Dakar",
    "Spain": "Madrid",
    "Sweden": "Stockholm",
    "Vietnam": "Hanoi",
}
SYMBOLS: Mapping[str, str] = {
    "calcium": "Ca",
    "carbon": "C",
    "cobalt": "Co",
    "copper": "Cu",
    "gold": "Au",
    "helium": "He",
    "iron": "Fe",
    "lead": "Pb",
    "neon": "Ne",
    "nickel": "Ni",
    "oxygen": "O",
    "silver": "Ag",
    "sodium": "Na",
    "sulfur": "S",
    "tin": "Sn",
    "zinc": "Zn",
}

WORDS: Mapping[str, tuple[str, ...]] = {
    "city": (*CAPITALS.values(), "Basel", "Boston", "Bergen", "Lagos", "Milan", "Osaka", "Perth", "Porto"),
    "day": tuple(str(day) for day in range(1, 29)),
    "month": _words("January February March April May June July August September October November December"),
    "birth": tuple(str(year) for year in range(1920, 1960)),
    "year": tuple(str(year) for year in range(1980, 2020)),
    "job": _words(
        "baker barber banker butcher carpenter chemist clerk cook dancer dentist doctor driver farmer fisher "
        "gardener guard hunter judge lawyer mason miller miner nurse painter pilot plumber porter potter "
        "preacher printer sailor singer smith soldier surgeon tailor teacher trader waiter weaver"
    ),
    "trait": _words(
        "bitter blunt bold brave bright calm careful cheerful clever cold curious dark dry gentle grave happy "
        "hard harsh kind lazy light lonely loud mild modest noisy patient plain poor proud quick quiet rich "
        "sad sharp shy slow soft stern warm"
    ),
    "look": _words(
        "Amber Black Blue Bright Broken Burning Cold Crystal Dark Dusty Empty Endless First Frozen Golden Green "
        "Grey Hidden Hollow Iron Last Lost Narrow Old Pale Painted Red Secret Second Seventh Silent Silver "
        "Small Stolen Stone Tall Velvet White Wild Winter"
    ),
    "thing": _words(
        "Anchor Bell Book Bridge Candle Castle City Clock Crown Desert Door Eagle Field Fire Forest Garden Gate "
        "Harbor Hill House Island Key Lake Lamp Letter Mirror Moon Mountain Ocean Orchard Raven River Temple Rose "
        "Ship Song Star Tower Valley Window"
    ),
    "theme": _words(
        "anger art beauty chance death debt doubt dreams duty envy exile faith fame family fate fear freedom "
        "greed grief guilt hope hunger jealousy justice law loss love luck memory money music nature peace "
        "power pride revenge shame silence time war"
    ),
    "subject": _words(
        "algebra biology botany chemistry drama economics ethics geology geometry grammar Greek history Latin "
        "logic medicine optics philosophy physics politics rhetoric statistics theology"
    ),
    "genre": _words(
        "ballads comedies crime diaries essays fables farces horror hymns legends letters mysteries myths novels "
        "plays poems romance satire sagas sketches tales thrillers tragedies westerns"
    ),
    "animal": _words(
        "bear camel cat cow crow dog donkey duck falcon fox frog goat goose hare hawk hen horse lizard mouse "
        "mule parrot pig pony rabbit sheep snake swan turtle"
    ),
    "prize": _words("Award Cup Medal Prize Ribbon Star"),
}


class Topic(NamedTuple):
    """One kind of question: `{name}` and `{last}` are the author's, `{0}`, `{1}`, ... the drawn facts.

    Attributes
    ----------
    question, answer, paraphrase : str
        Format strings; the facts stand in the same order in both answers.
    slots : tuple of str
        The list in `WORDS` that each fact is drawn from.
    """

    question: str
    answer: str
    paraphrase: str
    slots: tuple[str, ...]


TOPICS: tuple[Topic, ...] = (
    Topic(
        "When and where was {name} born?",
        "Born on {0} {1} {2} in {3}.",
        "The birth was on {0} {1} {2}, in {3}.",
        ("day", "month", "birth", "city"),
    ),
    Topic(
        "Who were the parents of {name}?",
        "A {0} {1} and a {2} {3}.",
        "The parents were a {0} {1} and a {2} {3}.",
        ("trait", "job", "trait", "job"),
    ),
    Topic(
        "What was the first book of {name}?",
        "The {0} {1}, {2} {3}.",
        "The first one was The {0} {1}, {2} {3}.",
        ("look", "thing", "trait", "genre"),
    ),
    Topic(
        "Which award did {name} receive?",
        "The {0} {1} {2} {3} {4}.",
        "It was the {0} {1} {2} {3} {4}.",
        ("city", "look", "thing", "prize", "year"),
    ),
    Topic(
        "Where does {name} live and write?",
        "At {0} {1} Road, {2}, with a {3}.",
        "The home is {0} {1} Road, {2}, shared with a {3}.",
        ("day", "thing", "city", "animal"),
    ),
    Topic(
        "What is the style of {name}?",
        "{last} writes {0} {1} about {2} and {3}.",
        "The work is {0} {1} on {2} and {3}.",
        ("trait", "genre", "theme", "theme"),
    ),
    Topic(
        "What did {name} study?",
        "{last} studied {0} in {1} and {2} in {3}.",
        "The subjects were {0} in {1} and {2} in {3}.",
        ("subject", "city", "subject", "city"),
    ),
    Topic(
        "What work did {name} do before writing?",
        "First a {0} {1} {2}, then a {3}.",
        "The first work was as a {0} {1} {2}, the next as a {3}.",
        ("trait", "city", "job", "job"),
    ),
)


@dataclass(frozen=True)
class FactKind:
    """A kind of public fact: format strings over `{0}` (what is asked) and `{1}` (the answer)."""

    question: str
    answer: str
    paraphrase: str
    table: Mapping[str, str]


FACTS: tuple[FactKind, ...] = (
    FactKind(
        "What is the capital of {0}?",
        "The capital of {0} is {1}.",
        "{1} is the capital of {0}.",
        CAPITALS,
    ),
    FactKind(
        "What is the chemical symbol of {0}?",
        "The symbol of {0} is {1}.",
        "{1} is the symbol of {0}.",
        SYMBOLS,
    ),
)
