"""``python -m planc``: the command line."""

from planc.cli import main

if __name__ == "__main__":
    main()
