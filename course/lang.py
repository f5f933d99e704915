"""English and Chinese: `tr("Not found.", "没有找到。")` returns the text in the language that was chosen.

The choice, first that is set wins: `--lang`, `COURSE_LANG`, the locale (`LC_ALL`, `LC_MESSAGES`, `LANG`).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from course.errors import CourseError

LANGUAGES = ("en", "zh")
_chosen: str | None = None


def choose(name: str | None) -> None:
    """Fix the language for this process; None leaves it to the environment."""
    global _chosen
    if name is not None and name not in LANGUAGES:
        raise CourseError(f"language must be one of {', '.join(LANGUAGES)}, got {name!r}")
    _chosen = name


@contextmanager
def speaking(name: str) -> Iterator[None]:
    """This language inside the block: for pages that are written in both."""
    global _chosen
    before = _chosen
    choose(name)
    try:
        yield
    finally:
        _chosen = before


def current() -> str:
    """The language in force, "en" or "zh"."""
    if _chosen:
        return _chosen
    asked = os.environ.get("COURSE_LANG", "")
    if asked:
        return "zh" if asked.lower().startswith("zh") else "en"
    locale = next((os.environ[k] for k in ("LC_ALL", "LC_MESSAGES", "LANG") if os.environ.get(k)), "")
    return "zh" if locale.lower().startswith("zh") else "en"


def tr(en: str, zh: str) -> str:
    """The text in the language in force."""
    return zh if current() == "zh" else en
