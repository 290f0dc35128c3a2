"""The picture of the site in the README: a page of the built site, photographed by Chromium."""

import io
import shutil
from pathlib import Path

from .build import Site

PAGE, PLACE, SIZE = "attention.html", "eq-score-variance", (1280, 800)


def picture() -> Path:
    """Write ``nbs/images/site.png``. Needs playwright and Chromium."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    site = Site()
    site.build()
    out = site.nbs / "images" / "site.png"
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        context = running.new_context(
            viewport={"width": SIZE[0], "height": SIZE[1]}, reduced_motion="reduce", color_scheme="light"
        )
        page = context.new_page()
        page.goto((site.target / PAGE).as_uri())
        page.evaluate(f"scrollTo(0, document.getElementById('{PLACE}').offsetTop - 260)")
        page.wait_for_function("document.fonts.status === 'loaded'")
        page.wait_for_timeout(300)
        data = page.screenshot()
        running.close()
    out.parent.mkdir(exist_ok=True)
    image = Image.open(io.BytesIO(data)).convert("RGB").quantize(128)
    image.save(out, optimize=True)
    return out
