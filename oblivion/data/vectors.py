"""Samples of classification: a row is a vector of numbers with one of a few classes.

The numbers stand in `Sample.prompt` as text with a space between them, the class in `Sample.answer` as a digit string,
and the other classes in `Sample.wrong_answers`. So digests, copies of rows and messages treat such rows as all others.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence

from oblivion.errors import InputError
from oblivion.types import Sample

LARGEST = 1e6
"""The largest feature, by absolute value: sums of squares over many features are then finite in fp32."""
MOST_CLASSES = 1000
MOST_FEATURES = 100_000


def vector_sample(
    features: Iterable[float], label: int, classes: int, *, id: str, client: str = "", path: tuple[str, ...] = ()
) -> Sample:
    """Return the sample of a vector with a class from 0 to ``classes - 1``."""
    return Sample(
        id=id,
        client_id=client,
        prompt=" ".join(map(repr, map(float, features))),
        answer=str(label),
        wrong_answers=_others(label, classes),
        path=path,
        extras={"label": str(label)},
    )


@functools.lru_cache(maxsize=MOST_CLASSES)
def _others(label: int, classes: int) -> tuple[str, ...]:
    """Return the names of the other classes; all rows of a class share them, because a table may have many of both."""
    return tuple(str(other) for other in range(classes) if other != label)


def features_of(sample: Sample) -> tuple[float, ...]:
    """Return the features of a sample.

    Raises
    ------
    InputError
        If they are no numbers of at most `LARGEST`; the message begins with the sample's id and repeats no value.
    """
    texts = sample.prompt.split()
    try:
        features = tuple(map(float, texts))
    except ValueError:
        features = ()
    if not features:
        raise InputError(f"{sample.id}: its features are not numbers with spaces between them, which a vector is")
    for place, value in enumerate(features, start=1):
        if not abs(value) <= LARGEST:
            raise InputError(f"{sample.id}: feature {place} is {fault(value)}")
    return features


def fault(value: float) -> str:
    """Return what is wrong with a feature, and what is accepted."""
    what = "not a finite number" if not math.isfinite(value) else "too large"
    return f"{what}; features from {-LARGEST:g} to {LARGEST:g} are accepted, so scale it or delete the row"


def classes_of(sample: Sample) -> int:
    """Return the number of classes, which the sample's own class and the others make together.

    Raises
    ------
    InputError
        If the classes are not 0, 1, 2, ...; the message begins with the sample's id.
    """
    names = sorted((sample.answer, *sample.wrong_answers), key=lambda name: (len(name), name))
    if len(names) < 2 or names != [str(number) for number in range(len(names))]:
        raise InputError(
            f"{sample.id}: its answer and its wrong answers are not the classes 0, 1, 2, ..., each once; give the rows "
            "of a data set of vectors"
        )
    return len(names)


def without_copies(samples: Iterable[Sample], others: Sequence[Sample] = ()) -> Iterator[Sample]:
    """Yield the samples of which neither an earlier one nor one of `others` is a copy."""
    seen = {(other.prompt, other.answer) for other in others}
    for sample in samples:
        content = (sample.prompt, sample.answer)
        if content not in seen:
            seen.add(content)
            yield sample


def digest_of_vectors(groups: Iterable[Iterable[Sample]]) -> str:
    """Return SHA-256 over the ids and contents of samples, group by group."""
    digest = hashlib.sha256()
    for samples in groups:
        for sample in samples:
            digest.update(f"{sample.id}\n{sample.prompt}\n{sample.answer}\n".encode())
        digest.update(b"\n")
    return digest.hexdigest()
