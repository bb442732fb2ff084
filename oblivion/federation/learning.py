"""Learning: the rounds of the federation, and the model that they end with."""

from __future__ import annotations

from oblivion.errors import InputError
from oblivion.federation.opened import OpenRun
from oblivion.federation.phase_runner import PhaseRunner
from oblivion.federation.results import Results
from oblivion.federation.too_long import beforehand
from oblivion.learning import learning_phases
from oblivion.ledger.register import MAIN
from oblivion.ledger.rounds import Branch
from oblivion.removal.phases import run_phases
from oblivion.run_format import ORIGINAL
from oblivion.training.fused import fusible


class Learning:
    """Runs the rounds of a run that are not there yet, so that it can be interrupted and done again.

    Parameters
    ----------
    opened : OpenRun
        The run.
    """

    def __init__(self, opened: OpenRun) -> None:
        self.opened = opened
        self.results = Results(opened)

    def rounds_left(self) -> int:
        """How many rounds of learning are still to be done; a removal that was committed has ended it."""
        head, rounds = self.opened.head, self.opened.config.federation.rounds
        if head != MAIN:
            return 0
        records = self.opened.ledger.records(head) if self.opened.has(head) else ()
        return rounds - (records[-1].round if records else 0)

    def learn(self) -> None:
        """Run every round of the federation that is not there yet, and keep the result."""
        run, config = self.opened, self.opened.config
        if run.head != MAIN:
            return
        run.federation.begin(Branch(name=MAIN, seed=config.seed, rounds=config.federation.rounds), run.initial)
        if run.federation.head(MAIN).round == 0:
            for text in beforehand(config, run.data):
                run.observer.event("warning", text=text)
        reason = fusible(run.resident)
        if config.privacy.unit == "sample":
            reason = "privacy.unit = 'sample' takes the gradient of every sample by itself"
        if reason is not None:
            run.observer.event("warning", text=f"clients are trained one by one: {reason}")
        if run.resident.left_out:
            layers = ", ".join(run.resident.left_out)
            run.observer.event("warning", text=f"these layers carry no adapter, see docs/models.md: {layers}")
        run_phases(learning_phases(config, replay=False), PhaseRunner(run.federation, MAIN), MAIN, None, 0)
        self.keep_original()
        self.results.write(self.results.record())

    def keep_original(self) -> None:
        """Save what was learned, if a crash came before that."""
        run = self.opened
        if run.head == MAIN and not (run.run.root / ORIGINAL).is_dir():
            self.results.save_adapter(ORIGINAL, run.federation.head(MAIN).state)

    def check_learned(self) -> None:
        """Refuse a run whose learning has not finished.

        Raises
        ------
        InputError
            Saying how to finish it.
        """
        left, rounds, root = self.rounds_left(), self.opened.config.federation.rounds, self.opened.run.root
        if left > 0:
            raise InputError(
                f"{root} has {rounds - left} of {rounds} rounds, so there is nothing to forget yet; finish it with: "
                f"oblivion run --resume --out {root}"
            )

    def measure_learned(self) -> None:
        """Measure the learned model where nobody asks to be forgotten."""
        record = self.results.record()
        if record.learned is None:
            self.results.write(record.but(learned=self.results.entry_of(self.results.original(), None)))
