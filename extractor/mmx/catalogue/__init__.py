"""Read a dataset folder: its tables, the items, and their contents."""
