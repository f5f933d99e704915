"""`course pages`: every English page has its Chinese twin, and the two do not drift apart.

A pair is `x.md` and `x_zh.md`, or `x.ipynb` and `x_zh.ipynb`. Section by section both have the same headings
(levels), paragraphs, list items, code blocks, inline code, tables, figures, links, formulas and decimal numbers
(task ids among them). What may differ: words, and in code the comments. Links are the same up to the language: a
Chinese page leads to Chinese pages, and an anchor to the same heading.

    python -m course pages
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

from course.markdown import Block, Page, Section, Table, read_page

# Pages without a twin, and why.
EXEMPT = {"CHANGELOG.md": "it names code, and is read by people who change code"}
_NOT_OURS = {
    "site",
    "build",
    "dist",
    "runs",
    "node_modules",
}  # what commands make at the root, ignored by git
DIAGRAMS = ("", "text", "mermaid")  # their words are translated
_OUTPUT = ("console",)  # a `#` there is what a command printed
_SPOKEN = "output"  # what a program prints in the reader's language: the numbers are compared
_COMMENT = re.compile(r"(?:^|\s{2,})(?:#|//)\s.*$|^\s*#$")
_WORDS = re.compile(r"\\text\{[^}]*\}|\s+")
_LETTER, _CHINESE = re.compile(r"[^\W\d_]"), re.compile(r"[\u4e00-\u9fff]")


@dataclass
class Tally:
    """How much was compared, counted on the English side."""

    pairs: int = 0
    headings: int = 0
    paragraphs: int = 0
    code_blocks: int = 0
    inline_code: int = 0
    tables: int = 0
    figures: int = 0
    links: int = 0
    formulas: int = 0
    decimals: int = 0

    def add(self, page: Page) -> None:
        self.pairs += 1
        for section in page.sections:
            self.headings += section.level > 0
            self.paragraphs += section.paragraphs
            self.code_blocks += len(section.blocks)
            self.inline_code += len(section.spans)
            self.tables += len(section.tables)
            self.figures += len(section.figures)
            self.links += len(section.links)
            self.formulas += len(section.formulas)
            self.decimals += len(section.decimals)

    def rows(self) -> list[list[str]]:
        return [[f.name.replace("_", " "), str(getattr(self, f.name))] for f in fields(self)]


def check(root: Path) -> tuple[Tally, list[str]]:
    """All pairs below `root`: what was compared, and every difference in a sentence."""
    _cached_page.cache_clear()
    tally = Tally()
    pairs, problems = find_pairs(root)
    for english, chinese in pairs:
        tally.add(_cached_page(english))
        problems += compare(english, chinese, root)
    return tally, problems


def find_pairs(root: Path) -> tuple[list[tuple[Path, Path]], list[str]]:
    """((English, Chinese) of every page that has both, a sentence for every page that stands alone)."""
    pages = {path for ending in ("*.md", "*.ipynb") for path in _walk(root, ending)}
    pairs, problems = [], []
    for page in sorted(pages):
        name, other = page.relative_to(root).as_posix(), twin(page)
        if is_chinese(page):
            if other not in pages:
                problems.append(f"{name} has no English twin {other.name}")
        elif other in pages:
            pairs.append((page, other))
        elif name not in EXEMPT:
            problems.append(f"{name} has no Chinese twin {other.name}")
    return pairs, problems


def _walk(root: Path, pattern: str) -> Iterator[Path]:
    for path in root.rglob(pattern):
        parts = path.relative_to(root).parts
        if not any(part.startswith(".") for part in parts) and parts[0] not in _NOT_OURS:
            yield path


def is_chinese(page: Path) -> bool:
    return page.stem.endswith("_zh")


def twin(page: Path) -> Path:
    """The same page in the other language, whether it exists or not."""
    stem = page.stem.removesuffix("_zh") if is_chinese(page) else f"{page.stem}_zh"
    return page.with_name(f"{stem}{page.suffix}")


_cached_page = cache(read_page)


def compare(english: Path, chinese: Path, root: Path) -> list[str]:
    """Every difference between the two languages of a page, and every link of them that leads nowhere."""
    one, other = _cached_page(english), _cached_page(chinese)
    broken = [problem for page in (one, other) for problem in _broken_links(page, root)]
    levels = [section.level for section in one.sections], [section.level for section in other.sections]
    if levels[0] != levels[1]:
        shared = zip(*levels, strict=False)
        first = next((n for n, (a, b) in enumerate(shared) if a != b), min(map(len, levels)))
        lines = [p.sections[first].line if first < len(p.sections) else 0 for p in (one, other)]
        places = _places(root, (one, lines[0]), (other, lines[1]))
        shown = [_heading(page, first) for page in (one, other)]
        return [*broken, f"{places}: the headings part: {shown[0]} and {shown[1]}"]
    problems = []
    for a, b in zip(one.sections, other.sections, strict=True):
        where = _places(root, (one, a.line), (other, b.line))
        problems += [f"{where}: {problem}" for problem in _compare_sections(a, b)]
        problems += [f"{where}: {problem}" for problem in _compare_links((one, a), (other, b), root)]
        within = [
            *((x.line, y.line, _compare_blocks(x, y)) for x, y in zip(a.blocks, b.blocks, strict=False)),
            *((x.line, y.line, _compare_tables(x, y)) for x, y in zip(a.tables, b.tables, strict=False)),
        ]
        for line, its_twin, found in within:
            here = _places(root, (one, line), (other, its_twin))
            problems += [f"{here}: {problem}" for problem in found]
    return broken + problems


def _places(root: Path, *ends: tuple[Page, int]) -> str:
    return " and ".join(f"{page.path.relative_to(root).as_posix()}{page.place(line)}" for page, line in ends)


def _heading(page: Page, number: int) -> str:
    if number >= len(page.sections):
        return "no heading"
    section = page.sections[number]
    return f"`{'#' * section.level} {section.title}`"


def _compare_sections(one: Section, other: Section) -> list[str]:
    """What can be counted or listed without looking at places inside the section."""
    problems = []
    for what, a, b in (
        ("paragraphs", one.paragraphs, other.paragraphs),
        ("list items", one.items, other.items),
        ("code blocks", len(one.blocks), len(other.blocks)),
        ("tables", len(one.tables), len(other.tables)),
    ):
        if a != b:
            problems.append(f"{a} and {b} {what}")
    for what, mine, theirs in (
        ("inline code", *_code_spans(one, other)),
        ("decimal numbers", one.decimals, other.decimals),
        ("formulas", [_WORDS.sub("", f) for f in one.formulas], [_WORDS.sub("", f) for f in other.formulas]),
        ("figures", [_neutral(f) for f in one.figures], [_neutral(f) for f in other.figures]),
    ):
        problems += _compare_lists(what, mine, theirs)
    return problems


def _compare_lists(what: str, mine: Sequence[str], theirs: Sequence[str]) -> list[str]:
    """The same members; Chinese may have them in another order."""
    missing = list((Counter(mine) - Counter(theirs)).elements())
    added = list((Counter(theirs) - Counter(mine)).elements())
    if not missing and not added:
        return []
    shown = [", ".join(f"`{text}`" for text in texts[:3]) or "nothing" for texts in (missing, added)]
    return [f"{what}: only in the first {shown[0]}, only in the second {shown[1]}"]


def _code_spans(one: Section, other: Section) -> tuple[list[str], list[str]]:
    """Inline code to compare. A Chinese span is a message of a program: it stands for an English one."""
    mine, theirs = [_neutral(span) for span in one.spans], [_neutral(span) for span in other.spans]
    for _ in [span for span in theirs if _CHINESE.search(span)]:
        spoken = [span for span in mine if span not in theirs]
        if spoken:
            mine.remove(spoken[0])
    return mine, [span for span in theirs if not _CHINESE.search(span)]


def _neutral(text: str) -> str:
    """A text without the language of the files that it names."""
    return re.sub(r"_zh(?=\.\w)", "", text)


# ------------------------------------------------------------------------------------------ blocks and tables


def _compare_blocks(one: Block, other: Block) -> list[str]:
    if one.language != other.language:
        return [f"code blocks in `{one.language}` and in `{other.language}`"]
    texts = ["\n".join(block.lines) for block in (one, other)]
    numbers = [re.findall(r"\d+\.\d+", text) for text in texts]
    if one.language == _SPOKEN:
        return _compare_lists("numbers of the output", *numbers)
    if len(one.lines) != len(other.lines):
        return [
            f"code blocks of {len(one.lines)} and {len(other.lines)} lines"
            + (f" (`{_SPOKEN}` blocks may differ: what a program prints)" if one.language in DIAGRAMS else "")
        ]
    if one.language in DIAGRAMS:
        arrows = [text.count("-->") if one.language == "mermaid" else 0 for text in texts]
        if arrows[0] != arrows[1]:
            return [f"diagrams with {arrows[0]} and {arrows[1]} arrows"]
        return _compare_lists("numbers of the diagrams", *numbers)
    for number, pair in enumerate(zip(one.lines, other.lines, strict=True), 1):
        a, b = [_neutral(line) for line in pair]
        if one.language not in _OUTPUT:
            a, b = _COMMENT.sub("", a).rstrip(), _COMMENT.sub("", b).rstrip()
        if a != b:
            return [f"line {number} of the code blocks: `{a.strip()}` and `{b.strip()}`"]
    return []


def _compare_tables(one: Table, other: Table) -> list[str]:
    shapes = [[len(row) for row in table.rows] for table in (one, other)]
    if len(shapes[0]) != len(shapes[1]):
        return [f"tables of {len(shapes[0])} and {len(shapes[1])} rows"]
    for number, (row, its_twin) in enumerate(zip(one.rows, other.rows, strict=True), 1):
        if len(row) != len(its_twin):
            return [f"row {number} of the tables has {len(row)} and {len(its_twin)} cells"]
        for a, b in zip(row, its_twin, strict=True):
            if not _LETTER.search(a) and _digits(a) != _digits(b):
                return [f"row {number} of the tables: `{a}` and `{b}`"]
    return []


def _digits(cell: str) -> list[str]:
    """The numbers of a cell: `1.15 ×` is `1.15 倍`."""
    return re.findall(r"[-−+]?\d+(?:[.,/]\d+)*", cell)


# --------------------------------------------------------------------------------------------------- links


def _compare_links(one: tuple[Page, Section], other: tuple[Page, Section], root: Path) -> list[str]:
    keys = [[_link_key(page, target, root) for target in section.links] for page, section in (one, other)]
    problems = _compare_lists("links", *keys)
    for page, section in (one, other):
        for target in section.links:
            leads_to = _page_of(page, target)
            if leads_to is None or leads_to in (page.path, twin(page.path)):
                continue
            if is_chinese(leads_to) != is_chinese(page.path) and twin(leads_to).is_file():
                problems.append(f"the link to {target} leads to the other language: {twin(leads_to).name}")
    return problems


def _page_of(page: Page, target: str) -> Path | None:
    """The Markdown page or notebook that a link leads to, None for anything else."""
    if "://" in target or target.startswith("mailto:"):
        return None
    name = target.partition("#")[0]
    path = (page.path.parent / name).resolve() if name else page.path
    return path if path.suffix in (".md", ".ipynb") and path.is_file() else None


def _link_key(page: Page, target: str, root: Path) -> str:
    """What a link and its translation have in common: the file without language, the heading by number."""
    leads_to = _page_of(page, target)
    if leads_to is None:
        return _neutral(target)
    anchor = target.partition("#")[2]
    number = _cached_page(leads_to).anchors().get(anchor) if anchor else None
    name = _neutral(leads_to.name)
    folder = leads_to.parent.relative_to(root.resolve()) if leads_to.is_relative_to(root.resolve()) else ""
    return f"{folder}/{name}" + (f" heading {number}" if anchor else "")


def _broken_links(page: Page, root: Path) -> list[str]:
    """Links and figures that lead nowhere: no such file, or no such heading."""
    problems = []
    for section in page.sections:
        for target in [*section.links, *section.figures]:
            if "://" in target or target.startswith(("mailto:", "data:")):
                continue
            name, _, anchor = target.partition("#")
            leads_to = _page_of(page, target)
            if name and not (page.path.parent / name).exists():
                problems.append(f"{_places(root, (page, section.line))}: {target} leads nowhere")
            elif anchor and leads_to is not None and anchor not in _cached_page(leads_to).anchors():
                problems.append(f"{_places(root, (page, section.line))}: {target}: no such heading")
    return problems
