"""Damaged files for every reader of nanort: ``cd tests && python -m fuzz gguf --runs 1000000 --seed 1``."""
