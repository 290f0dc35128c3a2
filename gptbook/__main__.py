"""`python -m gptbook` is the command `gptbook`."""

import sys

from gptbook.cli import main

if __name__ == "__main__":
    sys.exit(main())
