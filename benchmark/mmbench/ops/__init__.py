"""Fused tensor operations, sparse graphs, optimisers and neighbour search."""
