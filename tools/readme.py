"""Write README.md from the words of nbs/index.ipynb. With --check, only say whether it is up to date."""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def readme() -> str:
    cells = json.loads((ROOT / "nbs" / "index.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    text = re.sub(r"\(((?:\d\d|[A-D])_\w+\.ipynb)", r"(nbs/\1", text)  # links from the root
    text = re.sub(r" \{#sec-[\w-]+\}$", "", text, flags=re.M)
    words = "A page of the book: a formula of the chapter on attention, and the cell that checks it"
    picture = f"![{words}](nbs/images/site.png)"
    text = re.sub(r"^(> .+)$", rf"\1\n\n{picture}", text, count=1, flags=re.M)
    callout = r'^::: \{\.callout-note.*? title="(.*?)"\}\n(.*?)\n:::$'
    folded = r"<details><summary>\1</summary>\n\n\2\n\n</details>"
    text = re.sub(callout, folded, text, flags=re.M | re.S)
    return "<!-- Made by tools/readme.py from nbs/index.ipynb: edit the notebook. -->\n\n" + text + "\n"


if __name__ == "__main__":
    path = ROOT / "README.md"
    if "--check" in sys.argv:
        same = path.read_text(encoding="utf-8") == readme()
        sys.exit(0 if same else "README.md is out of date: run tools/readme.py")
    path.write_text(readme(), encoding="utf-8")
