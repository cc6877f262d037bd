"""Runs: from a recipe to a folder with a trained and evaluated model."""
