"""gptbook: why can a GPT write meaningful text? The code of the book, exported from its notebooks.

Names are imported when they are first used, so that `import gptbook` and `gptbook --help` stay fast.
"""

from importlib import import_module as _import_module

_HOME = {
    "checks": "workshop.checks",
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'gptbook' has no attribute {name!r}")
    return getattr(_import_module(f"gptbook.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
