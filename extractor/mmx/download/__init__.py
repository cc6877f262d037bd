"""Download public collections and convert them to dataset folders."""
