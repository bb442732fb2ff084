"""Run federations in simulation, from the command line or from Python."""

from simulations.simulate import RunResult, open_run, resume, simulate

__all__ = ["RunResult", "open_run", "resume", "simulate"]
