"""`python -m meshproxy`: the same command as the console script."""

import sys

from meshproxy.cli import main

if __name__ == "__main__":
    sys.exit(main())
