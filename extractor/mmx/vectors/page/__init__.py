"""A page about a feature set: what is in it, what is wrong with it, and a map."""
