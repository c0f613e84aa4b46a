"""A shell in a guest, on this terminal: what `make lab-shell` runs. The options are those of tests.lab."""

import sys

from tests.lab.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["--shell", *sys.argv[1:]]))
