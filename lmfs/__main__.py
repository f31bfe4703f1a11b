"""`python -m lmfs` is the command `lmfs`."""

from lmfs.cli import main

if __name__ == "__main__":
    main()
