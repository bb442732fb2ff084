"""Make clients with rows from a config: load, partition and check them, and leave out what was forgotten."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache

from oblivion.config import DataConfig, RunConfig
from oblivion.data.corpus import Corpus, FederatedData
from oblivion.data.datasets import datasets, has_mapped_columns
from oblivion.data.datasets.jsonl import load_rows
from oblivion.data.partitions import partitions
from oblivion.data.rows import digest_of_texts
from oblivion.errors import ConfigError, InputError, nearest
from oblivion.parameters import call
from oblivion.types import Sample, check_client_id


def resolve(config: RunConfig, forgotten: Collection[str] = ()) -> FederatedData:
    """Load the data that `config` names and give every row its owner.

    The result of one config is kept, so that a host can ask with every message; it must not be changed. Files
    that change while a process runs are not read again.

    Parameters
    ----------
    config : RunConfig
        ``data``, ``seed`` and ``federation.clients`` decide the result; ``federation.joins`` and ``.ranks`` name
        clients.
    forgotten : collection of str, optional
        Clients that the run has forgotten, so that no message may name them.

    Returns
    -------
    FederatedData
        Clients sorted by id as strings. Rows of evaluation groups that are some client's rows
        (``extras["source"]`` names the sample) carry its `client_id`.

    Raises
    ------
    ConfigError
        If a name or parameter is wrong, a client has no rows, a client that is named does not exist, or a public
        row is also a training or evaluation row.
    InputError
        If a file is missing or malformed, or an evaluation row that nobody should have is also a training row.
    """
    key = {
        "data": config.data.model_dump(mode="json"),
        "clients": config.federation.clients,
        "seed": config.seed,
    }
    data = _resolve(json.dumps(key, sort_keys=True))
    for setting, named in (("joins", config.federation.joins), ("ranks", config.federation.ranks)):
        for client in sorted(named):
            if client not in data.clients:
                known = [other for other in data.clients if other not in forgotten]
                raise ConfigError(f"federation.{setting}: there is no client '{client}'; {nearest(client, known)}")
    return data


@lru_cache(maxsize=8)
def _resolve(key: str) -> FederatedData:
    values = json.loads(key)
    data = DataConfig.model_validate(values["data"])
    corpus = load_corpus(data, values["clients"], values["seed"])
    clients = _partition(data, corpus.samples, values["clients"], values["seed"])
    public, digest = _public(data, corpus)
    kept = clients if data.partition == "natural" else {}  # other partitions deal the rows anew
    federated = FederatedData(
        clients=clients,
        groups=_owned_groups(corpus.groups, clients),
        public=public,
        digest=digest,
        names={client: name for client, name in corpus.names.items() if client in kept},
    )
    _check_own(federated)
    _check_public(federated)
    return federated


def load_corpus(data: DataConfig, clients: int, seed: int) -> Corpus:
    """Load the data set that ``data.name`` names, with ``data.parameters``, before its rows have owners.

    Raises
    ------
    ConfigError
        If the name or a parameter is wrong.
    InputError
        If a file is missing or malformed, or another package's data set returns something else.
    """
    corpus = call(datasets, data.name, data.parameters, "data.parameters", data, clients=clients, seed=seed)
    if not isinstance(corpus, Corpus):
        raise InputError(f"dataset '{data.name}' is not valid: it returns no oblivion.data.corpus.Corpus")
    return corpus


def _partition(data: DataConfig, samples: tuple[Sample, ...], clients: int, seed: int) -> dict[str, tuple[Sample, ...]]:
    key, values = "data.partition-parameters", data.partition_parameters
    owned = call(partitions, data.partition, values, key, samples, clients=clients, seed=seed)
    if not isinstance(owned, Mapping):
        raise InputError(f"partition '{data.partition}' is not valid: it returns no mapping from client ids to rows")
    for client, rows in owned.items():
        check_client_id(client)
        if not rows:
            raise ConfigError(
                f"data.partition = '{data.partition}' leaves '{client}' without rows; lower "
                "federation.clients or load more rows"
            )
        _check_ids(client, rows)
    return dict(sorted(owned.items()))


def _check_ids(client: str, rows: Iterable[Sample]) -> None:
    texts: dict[str, tuple[str, str]] = {}
    for number, row in enumerate(rows, start=1):
        text = (row.prompt, row.answer)
        if texts.setdefault(row.id, text) != text:
            raise InputError(
                f"'{client}' has two different rows with one id (the second is row {number}); give each its own"
            )


def _owned_groups(
    groups: Mapping[str, tuple[Sample, ...]], clients: Mapping[str, tuple[Sample, ...]]
) -> dict[str, tuple[Sample, ...]]:
    owners = {sample.id: client for client, rows in clients.items() for sample in rows}

    def owned(row: Sample) -> Sample:
        owner = owners.get(row.extras.get("source", ""))
        return replace(row, client_id=owner) if owner else row

    return {name: tuple(owned(row) for row in rows) for name, rows in groups.items()}


def _public(data: DataConfig, corpus: Corpus) -> tuple[tuple[Sample, ...], str]:
    """Return the server's public rows, and the digest of everything that was read."""
    if not data.public:
        return (), corpus.digest
    if data.public == "dataset":
        if not corpus.public:
            raise ConfigError(
                f"data.public = 'dataset', but '{data.name}' has no public rows; set it to the path of a file"
            )
        return corpus.public, corpus.digest
    rows, digest = load_rows(data.public, data.columns if has_mapped_columns(data.name) else {}, "public")
    return rows, digest_of_texts((corpus.digest, digest))


def _check_own(data: FederatedData) -> None:
    """Check that the server's evaluation rows are nobody's training rows: they stand for what was never seen."""
    trained = {(row.prompt, row.answer): client for client, rows in data.clients.items() for row in rows}
    for name, rows in data.groups.items():
        for number, row in enumerate(rows if name != "retain" else (), start=1):  # those are clients', see `Corpus`
            owner = trained.get((row.prompt, row.answer))
            if owner and owner != row.client_id:  # a row that names its owner may be among the owner's
                raise InputError(
                    f"row {number} of group '{name}' is also among the rows of '{owner}'; take it out of one of them"
                )


def _check_public(data: FederatedData) -> None:
    places = {(row.prompt, row.answer): f"group '{name}'" for name, rows in data.groups.items() for row in rows}
    for client, rows in data.clients.items():
        places.update({(row.prompt, row.answer): f"the rows of '{client}'" for row in rows})
    for number, row in enumerate(data.public, start=1):
        place = places.get((row.prompt, row.answer))
        if place:
            raise ConfigError(
                f"data.public: row {number} is also among {place}; public rows "
                "must be nobody's training data and in no evaluation"
            )


def without(data: FederatedData, client_id: str, sample_ids: Collection[str] | None = None) -> FederatedData:
    """Return the same federation without a client, or without some of its samples.

    This filters what `resolve` returned, and partitions nothing again, so every other client keeps its rows, also those
    that are the same as rows that go (see `oblivion.data.groups.shared_rows`).

    Parameters
    ----------
    data : FederatedData
        The federation, which is not changed.
    client_id : str
        The client whose rows go.
    sample_ids : collection of str or None
        The ids of the rows that go; None for the whole client.

    Returns
    -------
    FederatedData
        Rows of evaluation groups that are forgotten rows are gone too, so that nothing forgotten is counted
        as retained. The digest is the one of `data`.

    Raises
    ------
    ConfigError
        If there is no such client or sample, or nothing would be left.
    """
    check_client(data, client_id)
    own = data.clients[client_id]
    gone = {row.id for row in own} if sample_ids is None else set(sample_ids)
    unknown = sorted(gone - {row.id for row in own})
    if unknown:
        raise ConfigError(f"'{client_id}' has no sample '{unknown[0]}'")
    clients = dict(data.clients)
    rest = tuple(row for row in own if row.id not in gone)
    if rest:
        clients[client_id] = rest
    else:
        del clients[client_id]
    if not clients:
        raise ConfigError(f"'{client_id}' is the only client; without it no data is left")

    def stays(row: Sample) -> bool:
        return row.client_id != client_id or not {row.id, row.extras.get("source")} & gone

    groups = {name: tuple(row for row in rows if stays(row)) for name, rows in data.groups.items()}
    names = {client: name for client, name in data.names.items() if client in clients}
    return replace(data, clients=clients, groups=groups, names=names)


def for_source(config: RunConfig, forgotten: Collection[str]) -> RunConfig:
    """Fit a run's config to a data source from which none, some or all of the forgotten clients were deleted.

    Parameters
    ----------
    config : RunConfig
        The config with which the run began.
    forgotten : collection of str
        The clients that it has forgotten since.
    """
    federation = config.federation
    joins, ranks = (
        {client: value for client, value in of_clients.items() if client not in forgotten}
        for of_clients in (federation.joins, federation.ranks)
    )
    for deleted in range(len(forgotten) + 1):
        update = {"clients": federation.clients - deleted, "joins": joins, "ranks": ranks}
        fitted = config.model_copy(update={"federation": federation.model_copy(update=update)})
        try:
            resolve(fitted)
        except ConfigError:
            continue
        return fitted
    return config  # `resolve` will say what is wrong


def client_digests(data: FederatedData) -> dict[str, str]:
    """Return each client's digest of its rows, in their order: SHA-256, under the client's key if it has one."""
    digests = {}
    for client, rows in data.clients.items():
        content = [[row.id, row.prompt, row.answer, row.paraphrase, *row.wrong_answers] for row in rows]
        digests[client] = _digest(data.keys.get(client), json.dumps(content).encode())
    return digests


def data_digest(data: FederatedData) -> str:
    """Return the digest of all that was read: SHA-256, under the keys of all clients together if they have keys."""
    if not data.keys:
        return data.digest
    return _digest(b"".join(key for _, key in sorted(data.keys.items())), data.digest.encode())


def _digest(key: bytes | None, content: bytes) -> str:
    return (hmac.new(key, content, hashlib.sha256) if key else hashlib.sha256(content)).hexdigest()


def check_client(data: FederatedData, client_id: str) -> str:
    """Return `client_id` if `data` has it.

    Raises
    ------
    ConfigError
        If not; names the nearest and the known ones.
    """
    if client_id not in data.clients:
        raise ConfigError(f"there is no client '{client_id}'; {nearest(client_id, data.clients)}")
    return client_id
