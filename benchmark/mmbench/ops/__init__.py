"""Tensor operations with hand-written derivatives, sparse graphs, optimisers and neighbour search."""
