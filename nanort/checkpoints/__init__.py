"""Checkpoints and tokenizers on disk, read with no trust in them."""
