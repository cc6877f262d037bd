"""Compare finished runs, recommend from them, report on them."""
