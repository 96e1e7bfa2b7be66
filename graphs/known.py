"""CONFIGS: known decoders by their name."""

from __future__ import annotations

from nanort.graphs.config import DecoderConfig

CONFIGS = {
    "tiny": DecoderConfig(2, 64, 128, 4, 2, 16, 257),
    "smollm2-135m": DecoderConfig(30, 576, 1536, 9, 3, 64, 49_152, theta=100_000.0, tied=True, max_positions=8192),
    "llama-3-8b": DecoderConfig(32, 4096, 14_336, 32, 8, 128, 128_256, theta=500_000.0, max_positions=8192),
    "llama-3-70b": DecoderConfig(80, 8192, 28_672, 64, 8, 128, 128_256, theta=500_000.0, max_positions=8192),
    "mixtral-8x7b": DecoderConfig(
        32,
        4096,
        14_336,
        32,
        8,
        128,
        32_000,
        theta=1e6,
        max_positions=32_768,
        experts=8,
        experts_per_token=2,
        model="mixtral",
    ),
}
"""Known decoders by name; "tiny" is for tests: its vocabulary is the bytes and one more."""
