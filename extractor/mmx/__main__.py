"""Lets `python -m mmx` do what the installed command does."""

from mmx.cli import main

if __name__ == "__main__":
    main()
