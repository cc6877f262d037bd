"""Decode image and sound files."""
