"""Run federations in simulation, from the command line or from Python."""

from simulations.simulate import RunResult, simulate

__all__ = ["RunResult", "simulate"]
