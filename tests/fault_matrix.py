"""The fault matrix: every fault, in every phase, at every node of a graph; what is said of it, left, and done next."""

from __future__ import annotations

from fault_anew import Anew
from fault_cuda import Cuda
from fault_samples import Sample
from fault_table import Matrix
from fault_trials import Cpu, Planning


def try_all(matrix: Matrix, here: Sample) -> None:
    """Tries every case of a graph."""
    Planning(matrix, here).all()
    for capture in (False, True):
        Cuda(matrix, here, capture).all()
        Anew(matrix, here, capture).all()
    Cpu(matrix, here).all()
