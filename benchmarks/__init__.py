"""Benchmarks: ``python -m benchmarks.bench_core`` from the repository root; docs/measured.md says what they found.

``--quick`` runs at toy size, to see that a benchmark runs; ``--save FILE`` writes what was found as JSON.
"""
