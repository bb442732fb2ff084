"""What is specific to a modality, one per file: how samples become rows, batches, outputs and scores."""
