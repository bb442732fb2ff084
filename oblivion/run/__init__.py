"""A run on disk: its directory, manifest, events and scenarios."""
