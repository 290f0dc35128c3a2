"""`python -m gptbook` is the command `gptbook`."""

import sys


def main() -> int:
    """Run the command line; an interruption while it is still being loaded also gives one line and 130."""
    try:
        from gptbook.cli import main as command

        return command()
    except KeyboardInterrupt:
        print("gptbook: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
