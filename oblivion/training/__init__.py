"""Local training of clients and cohorts."""
