"""``python -m nanort``: the command line."""

from nanort.cli import main

if __name__ == "__main__":
    main()
