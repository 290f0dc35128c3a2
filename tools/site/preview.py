"""Serves the site on this machine and builds it again when the book changes."""

import functools
import http.server
import threading
import time

from .build import Site
from .stage import BookError


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files, says nothing, and lets the browser keep nothing."""

    def log_message(self, *args: object) -> None:
        pass

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")
        super().end_headers()


def preview(port: int = 4200) -> None:
    """Build, serve on ``http://127.0.0.1:PORT``, look for changes every second; Ctrl-C ends it."""
    _build()
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", port), functools.partial(Quiet, directory=str(Site().target))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{port}/index.html  (Ctrl-C ends it)")
    try:
        state = Site().inputs()
        while True:
            time.sleep(1)
            try:
                new = Site().inputs()
            except (OSError, ValueError):  # a file is being written
                continue
            if new != state:
                state = new
                _build()
    except KeyboardInterrupt:
        server.shutdown()


def _build() -> None:
    start = time.perf_counter()
    try:
        print(
            f"{'built' if Site().build() else 'up to date'} in {time.perf_counter() - start:.1f} s",
            flush=True,
        )
    except (BookError, RuntimeError, ValueError) as error:
        print(error, flush=True)
