"""`python -m numllama`: the command, also from a source tree that is not installed."""

import sys

from .api.cli import main

if __name__ == "__main__":
    sys.exit(main())
