"""LLaVA JSON to examples, label masks and batches."""
