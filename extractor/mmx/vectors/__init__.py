"""Finished feature sets: import, export, compare, fuse."""
