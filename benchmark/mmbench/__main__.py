"""Lets `python -m mmbench` do what the installed command does."""

from mmbench.cli import main

if __name__ == "__main__":
    main()
