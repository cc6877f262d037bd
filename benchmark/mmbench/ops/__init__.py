"""Fused tensor operations, sparse graphs, optimisers and neighbour search."""

from typing import Literal

SparseBackend = Literal["torch", "torch-sparse"]
"""Kernels of sparse products, by name."""
