"""The result of a data set's loader, before and after the rows have owners."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from oblivion.types import Sample


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A data set as loaded.

    Attributes
    ----------
    samples : tuple of Sample
        Rows that clients may own. `client_id` is set where the data itself names the owner.
    groups : mapping of str to tuple of Sample
        The server's own rows for evaluation, nobody's training data, except ``retain``: rows of clients that a
        benchmark publishes for measuring utility. Keys: ``retain``, ``ra`` (real authors), ``wf`` (world
        facts), ``holdout`` (same kind as the training rows, never trained on).
    public : tuple of Sample
        The server's own rows for anchors, disjoint from every group and from `samples`.
    digest : str
        SHA-256 over the content, for the manifest.
    names : mapping of str to str
        Client id to the owner's name in the data, where the two differ. A name may be a person's, so it is in no log,
        message, manifest or report.
    """

    samples: tuple[Sample, ...]
    groups: Mapping[str, tuple[Sample, ...]] = field(default_factory=dict)
    public: tuple[Sample, ...] = ()
    digest: str = ""
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FederatedData:
    """A corpus whose every row has one owner.

    Attributes
    ----------
    clients : mapping of str to tuple of Sample
        Client id (sorted as strings) to its rows, each with that `client_id`.
    groups, public, digest, names
        As in `Corpus`.
    keys : mapping of str to bytes
        The clients' keys where their rows have keyed ids (`oblivion.data.keyed_ids`); with them digests are made, too.
    plain_ids : mapping of str to mapping
        Client to the id of a row in the data, to its keyed id.
    """

    clients: Mapping[str, tuple[Sample, ...]]
    groups: Mapping[str, tuple[Sample, ...]] = field(default_factory=dict)
    public: tuple[Sample, ...] = ()
    digest: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    plain_ids: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
