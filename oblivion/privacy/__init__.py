"""Differential privacy: accountant, budget, noise and the mean of client-level privacy."""
