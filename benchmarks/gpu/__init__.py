"""Benchmarks on a GPU: ``python -m benchmarks.gpu`` from the repository root; docs/measured.md says what they found.

Each part is a module with ``measure(driver, scale)``, which yields rows; ``runner.PARTS`` lists them. A part runs in a
process of its own, since a CUDA fault outlives what caused it. At a ``scale`` below 1 sizes and rounds shrink, to see
that a part runs: the numbers mean nothing then.
"""
