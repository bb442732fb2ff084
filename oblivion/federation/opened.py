"""A run that is open for work: its ledger and data at once, its base model and hosts when something needs them."""

from __future__ import annotations

from collections import Counter
from functools import cached_property

from oblivion.config import RunConfig
from oblivion.data.corpus import FederatedData
from oblivion.data.keyed_ids import run_data
from oblivion.federation.client_store import ClientStore
from oblivion.federation.hosts import Hosts
from oblivion.federation.planning import present
from oblivion.federation.replay import Replay, replay_of
from oblivion.federation.rounds import Federation
from oblivion.federation.too_long import Unfit
from oblivion.learners import learner_of
from oblivion.ledger.opening import open_ledger
from oblivion.ledger.register import MAIN
from oblivion.ledger.rounds import Absence, Branch
from oblivion.run.directory import RunDirectory
from oblivion.run.events import Observer
from oblivion.run.records import read_manifest
from oblivion.run_format import CLIENT_STORE, ORIGINAL
from oblivion.tasks.task import Learner
from oblivion.types import Adapter, ForgetRequest


class OpenRun:
    """One run, whose ledger this process has for itself until `close`.

    Parameters
    ----------
    config : RunConfig
        Resolved.
    hosts : Hosts or None
        The engine's way to its hosts; None where nothing is trained or measured.
    run : RunDirectory
        Where results go; it exists.
    observer : Observer
        Who is told what happens.
    wait : float, default 0
        Seconds to wait for another process that works on the run.
    """

    def __init__(
        self, config: RunConfig, hosts: Hosts | None, run: RunDirectory, observer: Observer, wait: float = 0.0
    ) -> None:
        self.config = config
        self.hosts = hosts
        self.run = run
        self.observer = observer
        self.ledger, self.register = open_ledger(run.root, config.ledger, wait)
        try:
            if ahead := self.ledger.book.ahead():
                observer.event("warning", text=ahead)
            self._whole = self._source_data()
            self.data = present(self._whole, self.register.exclusions())
        except BaseException:
            self.close()
            raise

    @cached_property
    def resident(self) -> Learner:
        """The base model, loaded when it is first asked for."""
        return learner_of(self.config)

    @property
    def repeats_bits(self) -> bool:
        """Whether a visit gives the same bits each time: as the model that is loaded says, else as the run noted."""
        noted = None if "resident" in self.__dict__ else read_manifest(self.run.root).machine.deterministic
        return self.resident.repeats_bits if noted is None else noted

    @cached_property
    def unfit_rows(self) -> Unfit | None:
        """The rows that do not fit into the context, as the run noted them; None where it did not."""
        noted = read_manifest(self.run.root).unfit_rows
        return None if noted is None else {client: frozenset(ids) for client, ids in noted.items()}

    @cached_property
    def initial(self) -> Adapter:
        """The adapter before any training."""
        return self.resident.initial_adapter(self.config.seed)

    @cached_property
    def federation(self) -> Federation:
        """The clients, described by their hosts and enrolled; hosts and base model are used from here on."""
        assert self.hosts is not None
        whole = self._whole
        federation = Federation(self.config, self.hosts, self.ledger, self.initial, self.observer)
        federation.id_keys = whole.keys
        federation.store = ClientStore(self.run.root / CLIENT_STORE)
        federation.context = self.resident.max_length
        federation.describe({client: len(rows) for client, rows in whole.clients.items()})
        # As they were at the beginning, so that cohorts are what they were: forgotten rows may be gone since.
        gone = Branch(name="", seed=0, rounds=0, absent=self.register.exclusions())
        for client in self.data.clients:  # the same row twice may have one id
            copies = federation.copies[client] = Counter(row.id for row in whole.clients[client])
            federation.sizes[client] = copies.total() + len(set(gone.excluded(client)) - copies.keys())
        self._leave_out_who_left(federation)
        self.register.enrol_simulated(federation.sizes, self.data.names)
        return federation

    def _source_data(self) -> FederatedData:
        """The data of the run, as its source has it."""
        gone = [absence.client for absence in self.register.exclusions() if absence.samples is None]
        return run_data(self.run.root, self.config, gone)

    def present_data(self) -> FederatedData:
        """The data of the run without what it has forgotten by now."""
        return present(self._source_data(), self.register.exclusions())

    def reload(self) -> None:
        """Go by the exclusions as they are now."""
        self._whole = self._source_data()
        self.data = present(self._whole, self.register.exclusions())
        if "federation" in self.__dict__:
            self.federation.forget_heads()
            self._leave_out_who_left(self.federation)

    def _leave_out_who_left(self, federation: Federation) -> None:
        """Nobody who was forgotten is among the clients of a round that stays, also if its source still has it."""
        for client in (absence.client for absence in self.register.exclusions() if absence.samples is None):
            federation.sizes.pop(client, None)

    def close(self) -> None:
        """Leave the run to others."""
        self.ledger.close()

    @property
    def head(self) -> str:
        """The branch that the run stands on: what was learned, or the last removal that was committed."""
        return self.register.head()

    @property
    def head_folder(self) -> str:
        """Where the adapter of the run's head lies in the run directory."""
        return ORIGINAL if self.head == MAIN else f"forgets/{self.head}/adapters"

    @property
    def replay(self) -> Replay:
        """What aggregates the stored contributions again, without a model."""
        return replay_of(self.config, self.ledger, self.register.clients())

    def has(self, branch: str) -> bool:
        """Whether a branch was begun."""
        return any(known.name == branch for known in self.ledger.branches())

    def absent(self, request: ForgetRequest) -> tuple[Absence, ...]:
        """Who and what is absent once a request is answered: what was forgotten before, and what it asks for."""
        asked = Absence(client=request.client_id, samples=request.sample_ids)
        before = self.register.exclusions()
        if request.whole_client:  # then what of its samples was forgotten before need not be named any more
            before = tuple(absence for absence in before if absence.client != request.client_id)
        return (*before, asked)
