"""Rank, score and slice: from a trained model or given lists to metrics."""
