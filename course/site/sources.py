"""Pages that show source files and folders: where links to code lead, without a network.

A file's page is `source/<path>/index.html`, with an anchor L12 for each line, as on GitHub. A folder's page lists it.
"""

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, get_lexer_for_filename
from pygments.util import ClassNotFound

from course.site.links import SOURCE

LONGEST = 400_000  # characters; longer files are data that nobody reads on a page


def pages(wanted: set[str], root: Path) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(name, context, template) of the page of each wanted file or folder, and of all that a folder lists."""
    open_, done = sorted(wanted), set()
    while open_:
        file = open_.pop()
        if file in done:
            continue
        done.add(file)
        path = root / file
        if path.is_dir():
            names = _listing(path)
            open_ += [f"{file}/{name}".removeprefix("./") for name in names]
            body = _folder(names)
        else:
            body = _file(path)
        title = "/" if file == "." else file
        body = f"<h1><code>{html.escape(title)}</code></h1>\n{body}"
        name = f"{SOURCE}/index" if file == "." else f"{SOURCE}/{file}/index"
        yield name, {"title": title, "body": body, "furo_hide_toc": True}, "page.html"


def _listing(folder: Path) -> list[str]:
    """What a folder's page lists: readable files and folders that hold some, without caches and hidden ones."""
    found = []
    for path in sorted(folder.iterdir(), key=lambda p: (p.is_file(), p.name)):
        hidden = path.name.startswith((".", "__pycache__")) or path.name.endswith(".egg-info")
        if not hidden and (_text(path) is not None if path.is_file() else _listing(path)):
            found.append(path.name)
    return found


def _folder(names: list[str]) -> str:
    rows = "".join(
        f'<li><a href="{html.escape(name)}/index.html">{html.escape(name)}</a></li>\n' for name in names
    )
    return f'<ul class="source-list">\n{rows}</ul>\n'


def _text(path: Path) -> str | None:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None
    return text if len(text) <= LONGEST else None


def _file(path: Path) -> str:
    text = _text(path)
    if text is None:
        return f"<p>{path.stat().st_size:,} bytes.</p>"
    try:
        lexer = get_lexer_for_filename(path.name, stripnl=False)
    except ClassNotFound:
        lexer = TextLexer(stripnl=False)
    coloured = highlight(text, lexer, HtmlFormatter(nowrap=True))  # every line is closed in itself
    lines = "".join(
        f'<span class="line" id="L{n}"><a class="number" href="#L{n}">{n}</a>{line}\n</span>'
        for n, line in enumerate(coloured.rstrip("\n").split("\n"), start=1)
    )
    return f'<div class="highlight source"><pre>{lines}</pre></div>\n'
