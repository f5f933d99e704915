"""Docstrings as Sphinx wants them.

Ours are read in an editor: `name` in single backticks, $…$ for mathematics, x_ for a method's name. reStructuredText
reads these otherwise, so they are rewritten here before napoleon takes the sections (Args, Returns, Raises) apart.
"""

import re
import textwrap
from typing import Any

from sphinx.application import Sphinx

# Literals stay as they are; mathematics gets its role; what is left may hold a character that means something.
_PIECE = re.compile(r"(``.+?``)|`([^`]+?)`|(?<![\w\\$])\$(?![\s$])([^$]+?)(?<!\s)\$(?![\w$])", re.DOTALL)


def rewrite(text: str) -> str:
    """One docstring, rewritten."""
    pieces, end = [], 0
    for match in _PIECE.finditer(text):
        pieces.append(_escaped(text[end : match.start()]))
        literal, name, mathematics = match.groups()
        if literal is not None:
            pieces.append(literal)
        elif name is not None:
            pieces.append(f"``{name}``")
        else:
            pieces.append(f":math:`{' '.join(mathematics.split())}`")
        end = match.end()
    return "".join([*pieces, _escaped(text[end:])])


# Sections that napoleon knows, and takes apart itself.
_SECTIONS = {"Args:", "Attributes:", "Returns:", "Raises:", "Yields:", "References:", "Example:", "Note:"}
_ITEM = re.compile(r"[\w`\"/, ]+: ")


def with_lists(text: str) -> str:
    """Make lists of paragraphs like "name: what it is", which have one entry a line (or more, indented)."""
    blocks = re.split(r"\n[ ]*\n", text)
    return "\n\n".join(_as_list(block.split("\n")) for block in blocks)


def _as_list(lines: list[str]) -> str:
    deeper = [line for line in lines if line.startswith(" ")]
    items = len(lines) > 1 and all(_ITEM.match(line) for line in lines if line not in deeper)
    unchanged = "\n".join(lines)
    if lines[0].startswith((" ", "- ", "* ", "1. ")) or lines[0] in _SECTIONS:
        return unchanged
    if len(lines) == len(deeper) + 1 and lines[0].endswith(":"):  # a heading of our own, with its entries
        return f"**{lines[0]}**\n\n{_as_list(textwrap.dedent(chr(10).join(lines[1:])).split(chr(10)))}"
    if not deeper and not items:
        return unchanged
    return "\n".join(f"  {line.strip()}" if line in deeper else f"- {line}" for line in lines)


def _escaped(text: str) -> str:
    text = text.replace("|", "\\|")  # |got − want| would be a substitution
    text = re.sub(r"(?<=\w)_(?!\w)", r"\\_", text)  # unscale_ would be a reference
    text = re.sub(r"\*\*(?=\w)(?!\w[^*]*\*\*)", r"\\*\\*", text)  # **kwargs
    return re.sub(r"(?<![\w*\\])\*(?=\w)(?![^*\n]*\w\*)", r"\\*", text)  # *args


def _process(_app: Sphinx, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    lines[:] = rewrite(with_lists("\n".join(lines))).split("\n")


def setup(app: Sphinx) -> None:
    # Before napoleon, which listens with the usual priority of 500.
    app.connect("autodoc-process-docstring", _process, priority=400)
