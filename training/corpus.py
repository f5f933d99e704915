"""The embedded corpus: the documentation that ships inside CPython, 1.6 to 1.8 MB of ASCII text.

Used by data.py; ``python -m training.data`` shows it.

It is `pydoc_data.topics` (the language reference) and every docstring of 200 characters or more in the
standard library. The library's sources are parsed with `ast` and not imported: imports have side effects
(`antigravity` opens a browser, `this` prints). Extraction takes seconds, so the result is cached.
"""

from __future__ import annotations

import ast
import hashlib
import logging
import os
import sys
import sysconfig
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

MIN_DOCSTRING = 200
FORMAT = 1  # part of the cache's name: raise it when the extraction changes
SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}

log = logging.getLogger(__name__)


def embedded_corpus() -> bytes:
    """The corpus, from its cache where that is whole. A broken or unwritable cache costs time, no more."""
    cache = cache_path()
    text = _read_cache(cache)
    if text is None:
        docstrings = list(stdlib_docstrings())
        text = assemble([*topics(), *docstrings])
        if docstrings:
            _write_cache(cache, text)
        else:
            log.warning("The standard library's sources are missing: the corpus is pydoc_data.topics alone.")
    return text


def assemble(texts: list[str]) -> bytes:
    """Join the distinct texts, in the order of their digests.

    That order is the same on every machine, and mixes the modules: cut anywhere, both parts are alike.
    """
    cleaned = {text.encode("ascii", "ignore").strip() for text in texts}
    return b"\n\n".join(sorted(cleaned, key=lambda text: hashlib.sha256(text).digest())) + b"\n"


def topics() -> list[str]:
    """The language reference behind Python's `help("topics")`."""
    from pydoc_data.topics import topics as documents

    return list(documents.values())


def stdlib_docstrings(folder: Path | None = None) -> Iterator[str]:
    """Docstrings of MIN_DOCSTRING characters or more, found without importing anything."""
    folder = Path(sysconfig.get_path("stdlib")) if folder is None else folder
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in SKIPPED]
        for name in names:
            if not name.endswith(".py") or (name == "topics.py" and Path(root).name == "pydoc_data"):
                continue
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter(
                        "ignore"
                    )  # old escapes in the sources are not our reader's business
                    tree = ast.parse((Path(root) / name).read_bytes())
            except (OSError, SyntaxError, ValueError, RecursionError):
                continue
            for node in ast.walk(tree):
                if isinstance(node, documented):
                    docstring = ast.get_docstring(node) or ""
                    if len(docstring) >= MIN_DOCSTRING:
                        yield docstring


def cache_path() -> Path | None:
    """Where the corpus of this Python is cached, or None where the user has no home."""
    try:
        home = Path.home()
    except RuntimeError:
        home = None
    if sys.platform == "win32":
        variable, default = "LOCALAPPDATA", ("AppData", "Local")
    elif sys.platform == "darwin":
        variable, default = "XDG_CACHE_HOME", ("Library", "Caches")
    else:
        variable, default = "XDG_CACHE_HOME", (".cache",)
    folder = Path(os.environ.get(variable, ""))
    if not folder.is_absolute():  # unset, empty, or relative, which the XDG specification says to ignore
        if home is None:
            return None
        folder = home.joinpath(*default)
    version = f"{sys.implementation.name}-{'.'.join(map(str, sys.version_info[:3]))}"
    return folder / "trainer-from-scratch" / f"corpus-{version}-v{FORMAT}.txt"


def _read_cache(path: Path | None) -> bytes | None:
    """The text below the digest line, or None if it is missing, unreadable or does not match its digest."""
    if path is None:
        return None
    try:
        digest, _, text = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    return text if digest == hashlib.sha256(text).hexdigest().encode() else None


def _write_cache(path: Path | None, text: bytes) -> None:
    """Write to a temporary file in the same folder, then rename: a reader sees all of it or nothing."""
    if path is None:
        return
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".corpus-", delete=False) as file:
            temporary = file.name
            file.write(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
        os.replace(temporary, path)
    except OSError as error:
        log.debug("corpus not cached: %s", error)
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
