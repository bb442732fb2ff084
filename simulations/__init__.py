"""Run federations in simulation, from the command line or from Python."""

from simulations.simulate import RunResult, resume, simulate

__all__ = ["RunResult", "resume", "simulate"]
