"""``python -m tools.site [build | preview | stage | epub | pdf | notebooks | picture | clean]``: see README.md in this folder."""

import sys
import time

from .stage import BookError


def main(command: str = "build") -> None:
    """Run one command; a fault of the book or of the machine is one message, no traceback."""
    start = time.perf_counter()
    try:
        from .build import Site

        if command == "build":
            site = Site()
            done = site.build()
            print(
                f"{site.target / 'index.html'}: {'built' if done else 'up to date'} in {time.perf_counter() - start:.1f} s"
            )
        elif command == "preview":
            from .preview import preview

            preview()
        elif command == "stage":
            from .stage import write_for_quarto
            from .vendor import fetch

            site = Site()
            write_for_quarto(site.outline, site.root / "_proc", fetch() / "katex" / "dist")
            (site.root / "_proc" / "_api.md").write_text(site.api_markdown(), encoding="utf-8")
        elif command in ("epub", "pdf"):
            from .documents import write

            print(f"{write(command)}: written in {time.perf_counter() - start:.1f} s")
        elif command == "notebooks":  # for Colab: chapters that install what they need
            Site().chapters()
        elif command == "picture":
            from .picture import picture

            print(picture())
        elif command == "clean":
            from .build import clean

            clean()
        else:
            sys.exit(f"unknown command {command!r}\n{__doc__}")
    except (BookError, FileNotFoundError, RuntimeError) as error:
        sys.exit(f"The site was not built:\n{error}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
