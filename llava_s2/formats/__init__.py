"""Checkpoint formats: transformers', LLaVA's and PEFT's, told apart, read, written, inspected and converted."""
