"""The command, as ``python -m arctic_training``."""

import sys

from arctic_training.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
