"""Interactions, sampling, initial values, random streams and losses. No files, no printing."""
