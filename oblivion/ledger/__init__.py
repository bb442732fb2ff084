"""What a federation remembers of its rounds."""
