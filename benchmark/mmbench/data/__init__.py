"""Reading interactions and features; the only place where mmbench touches input files."""
