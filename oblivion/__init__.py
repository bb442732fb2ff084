"""Federated learning and unlearning of language models."""
