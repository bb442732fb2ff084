"""How the ledger's schema came to be, one revision per file."""
