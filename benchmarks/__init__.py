"""Measure speed side by side with what others do, in one run: ``python -m benchmarks NAME [--json]``."""
