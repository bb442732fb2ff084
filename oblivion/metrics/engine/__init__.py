"""The one pass over a model's rows that all metrics share."""
