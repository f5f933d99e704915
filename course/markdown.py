"""Reads a page, Markdown or a notebook, into what two languages of it must share: `read_page(path)`.

Headings, paragraphs, code, tables, figures, links, formulas and numbers, by section (what stands
between two headings). It reads the Markdown that this repository writes: ATX headings, fenced code, pipe tables.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

_FENCE = re.compile(r"^ {0,8}(`{3,}|~{3,})\s*(\{?[\w-]*\}?)")
_HEADING = re.compile(r"^(#{1,6}) +(.+?)\s*#*$")
_CODE = re.compile(r"(`+)(.+?)\1")
_FIGURE = re.compile(
    r"!\[(?:\\.|[^\]\\])*\]\(([^)\s]+)[^)]*\)|<(?:img|source)\b[^>]*?\b(?:src|srcset)=\"([^\"]+)\""
)
_LINK = re.compile(
    r"(?<!!)\[(?:\\.|[^\[\]\\]|\[[^\[\]]*\])*\]\(([^)\s]+)[^)]*\)|<(https?://[^>\s]+)>|<a\b[^>]*?\bhref=\"([^\"]+)\""
)
_DISPLAY, _INLINE = (
    re.compile(r"\$\$(.+?)\$\$", re.DOTALL),
    re.compile(r"(?<![\\$\w])\$([^$\n]+?)\$(?![\d$])"),
)
_DECIMAL, _URL = re.compile(r"\d+\.\d+"), re.compile(r"\]\([^)]*\)|https?://\S+")
_ITEM = re.compile(r"\s*(?:[-*]|\d+\.)\s")
_ANCHOR = re.compile(r"<a (?:id|name)=\"([^\"]+)\"")


@dataclass(frozen=True)
class Block:
    """A fenced code block: its language, its lines, and the line of its fence."""

    language: str
    lines: tuple[str, ...]
    line: int


@dataclass(frozen=True)
class Table:
    """A pipe table: its rows (the header first, without the rule below it) as cells."""

    rows: tuple[tuple[str, ...], ...]
    line: int


@dataclass
class Section:
    """A heading (level 0: the beginning of the page, before the first one) and what stands below it."""

    level: int
    title: str
    line: int
    blocks: list[Block] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    prose: list[str] = field(default_factory=list)  # without code blocks; tables are in it

    @property
    def _text(self) -> str:
        """The prose without code spans: what looks like a link or a formula in code is none."""
        return _CODE.sub("c", "\n".join(self.prose))

    @property
    def figures(self) -> list[str]:
        return [a or b for a, b in _FIGURE.findall(self._text)]

    @property
    def links(self) -> list[str]:
        """Targets, in order."""
        text = _FIGURE.sub("figure", self._text)
        return [next(filter(None, groups)) for groups in _LINK.findall(text)]

    @property
    def formulas(self) -> list[str]:
        text = self._text
        return [*_DISPLAY.findall(text), *_INLINE.findall(_DISPLAY.sub("", text))]

    @property
    def spans(self) -> list[str]:
        """Inline code: names, commands, paths."""
        return [text for _, text in _CODE.findall(f"{self.title}\n" + "\n".join(self.prose))]

    @property
    def decimals(self) -> list[str]:
        """Numbers with a point, which no language spells out: task ids, results. Not those of links."""
        return _DECIMAL.findall(_URL.sub("", f"{self.title}\n" + "\n".join(self.prose)))

    @property
    def paragraphs(self) -> int:
        groups = re.split(r"\n\s*\n", "\n".join(self.prose))
        return sum(bool(group.strip()) and not group.strip().startswith("|") for group in groups)

    @property
    def items(self) -> int:
        """Items of lists."""
        return sum(_ITEM.match(line) is not None for line in self.prose)

    @property
    def anchors(self) -> list[str]:
        return _ANCHOR.findall("\n".join(self.prose))


@dataclass
class Page:
    """A page: its sections in order. Lines of a notebook count through the text of its cells."""

    path: Path
    sections: list[Section]
    cells: list[int] = field(default_factory=list)  # of a notebook: the line where each cell begins

    def place(self, line: int) -> str:
        """`:12`, or `: cell 3` in a notebook."""
        if not self.cells:
            return f":{max(line, 1)}"
        return f": cell {max(1, sum(start <= line for start in self.cells))}"

    def anchors(self) -> dict[str, int]:
        """Anchor → number of the section that it leads to, as GitHub makes them from the headings."""
        found: dict[str, int] = {}
        for number, section in enumerate(self.sections):
            if section.level:
                name = anchor = slug(section.title)
                again = 0
                while anchor in found:
                    again += 1
                    anchor = f"{name}-{again}"
                found[anchor] = number
            for anchor in section.anchors:
                found[anchor] = number
        return found


def slug(title: str) -> str:
    """GitHub's anchor of a heading: lower case, no punctuation, hyphens for spaces."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "").strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def read_page(path: Path) -> Page:
    """Read a .md file, or the cells of an .ipynb file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return Page(path, read_sections(text))
    lines: list[str] = []
    cells = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"]).splitlines()
        cells.append(len(lines) + 1)
        lines += source if cell["cell_type"] == "markdown" else ["```python", *source, "```"]
        lines.append("")
    return Page(path, read_sections("\n".join(lines)), cells)


def read_sections(text: str) -> list[Section]:
    """The sections of a Markdown text; the first has level 0 and may be empty."""
    sections = [Section(0, "", 0)]
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        line, here = lines[number], sections[-1]
        if fence := _FENCE.match(line):
            end = _end_of_block(lines, number, fence[1])
            here.blocks.append(Block(fence[2], tuple(lines[number + 1 : end]), number + 1))
            number = end
        elif heading := _HEADING.match(line):
            sections.append(Section(len(heading[1]), heading[2], number + 1))
        elif line.startswith("|"):
            end = next((n for n in range(number, len(lines)) if not lines[n].startswith("|")), len(lines))
            here.tables.append(_table(lines[number:end], number + 1))
            here.prose += lines[number:end]
            number = end - 1
        else:
            here.prose.append(line)
        number += 1
    return sections


def _end_of_block(lines: list[str], start: int, fence: str) -> int:
    for number in range(start + 1, len(lines)):
        if lines[number].strip().startswith(fence) and not lines[number].strip(f" {fence[0]}"):
            return number
    return len(lines)


def _table(lines: list[str], line: int) -> Table:
    rows = [tuple(cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip().strip("|"))) for row in lines]
    return Table(tuple(row for n, row in enumerate(rows) if n != 1), line)


def unlink(text: str, is_gone: Callable[[str], bool]) -> tuple[str, int]:
    """(the text with its links to what is gone as plain text, how many they were)."""
    count = 0

    def plain(match: re.Match[str]) -> str:
        nonlocal count
        if not match[1] or not is_gone(match[1]):
            return match[0]
        count += 1
        return match[0][1:].rpartition("](")[0]

    lines = text.split("\n")
    number = 0
    while number < len(lines):
        if fence := _FENCE.match(lines[number]):
            number = _end_of_block(lines, number, fence[1])
        else:
            lines[number] = _LINK.sub(plain, lines[number])
        number += 1
    return "\n".join(lines), count
