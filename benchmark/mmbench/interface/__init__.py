"""What Python programs and notebooks call, and what the commands stand on; see docs/python.md.

`mmbench` itself has the names: the modules here are imported when a name is first used.
"""
