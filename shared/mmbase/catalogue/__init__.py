"""The items of a dataset folder and their files; both tools find them here."""
