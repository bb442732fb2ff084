"""Data sets, partitions, prompt templates and tokens."""
