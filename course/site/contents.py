"""Which pages the site has, and in which order: docs/contents.toml, compared with what lies in the repository."""

import tomllib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from course.errors import CourseError
from course.registry import ROOT

FILE = "docs/contents.toml"
# Where pages lie. Other folders (environments, runs, a student's notes) are none of the site's business.
ROOMS = ("docs", "tutorial", "solutions", "testcases", "benchmarks", "training", "course")
NOTEBOOK = "lesson.ipynb"
LANGUAGES = ("en", "zh")


@dataclass(frozen=True)
class Page:
    """A page of the site; the names are relative to the root, `chinese` is None where the page is English only."""

    english: str
    chinese: str | None

    @property
    def document(self) -> str:
        """Sphinx's name of it, which is its address without .html: `tutorial/…/lesson01_sgd/index`."""
        stem = self.english.rpartition(".")[0]
        return stem.removesuffix("README") + "index" if stem.endswith("README") else stem

    def source(self, language: str) -> str:
        """The file that is shown in this language."""
        return self.chinese if language == "zh" and self.chinese else self.english


@dataclass(frozen=True)
class Part:
    """A titled group of the sidebar."""

    title: dict[str, str]
    pages: list[Page]
    packages: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Contents:
    home: Page
    parts: list[Part]
    notebooks: list[Page]

    @property
    def pages(self) -> list[Page]:
        return [self.home, *(page for part in self.parts for page in part.pages), *self.notebooks]

    def notebook_of(self, page: Page) -> Page | None:
        """The notebook that lies beside this page, if there is one."""
        folder = Path(page.english).parent
        return next((book for book in self.notebooks if Path(book.english).parent == folder), None)

    @cached_property
    def by_file(self) -> dict[str, tuple[Page, str]]:
        """For each file of a page: the page, and the file's language."""
        found = {page.english: (page, "en") for page in self.pages}
        found.update({page.chinese: (page, "zh") for page in self.pages if page.chinese})
        return found


def read_contents(root: Path = ROOT) -> Contents:
    """Read and check the table of contents. Raises CourseError with everything that is wrong, one a line."""
    with open(root / FILE, "rb") as file:
        table: dict[str, Any] = tomllib.load(file)
    english_only = set(table["english_only"])
    files = page_files(root)
    problems = [
        f"english_only names {name}, which is not there" for name in sorted(english_only - set(files))
    ]

    def page(name: str) -> Page:
        stem, dot, suffix = name.rpartition(".")
        twin = f"{stem}_zh{dot}{suffix}"
        if twin in files:
            if name in english_only:
                problems.append(f"english_only names {name}, which has a Chinese twin")
            return Page(name, twin)
        if name not in english_only:
            problems.append(f"{name} has no Chinese twin {twin}")
        return Page(name, None)

    markdown = [name for name in files if name.endswith(".md") and not name.endswith("_zh.md")]
    named = {name for part in table["part"] for name in part["pages"] if "*" not in name} | {table["home"]}
    left = set(markdown) - named
    parts = []
    for part in table["part"]:
        names = [found for name in part["pages"] for found in _matching(name, left, markdown, problems)]
        title = {"en": part["title"], "zh": part["title_zh"]}
        parts.append(Part(title, [page(name) for name in names], part.get("packages", [])))
    problems += [f"{name} is in no part" for name in sorted(left)]
    contents = Contents(
        page(table["home"]), parts, [page(name) for name in files if Path(name).name == NOTEBOOK]
    )
    orphans = sorted(name for name in files if name not in contents.by_file and name not in left)
    problems += [f"{name} has no English twin" for name in orphans]
    if problems:
        raise CourseError(f"{FILE}:\n  " + "\n  ".join(problems))
    return contents


def _matching(name: str, left: set[str], markdown: list[str], problems: list[str]) -> list[str]:
    """The pages that an entry stands for; those of a pattern are taken out of `left`."""
    if "*" not in name:
        if name not in markdown:
            problems.append(f"names {name}, which is not there")
            return []
        return [name]
    # By hand rather than with fnmatch, whose * also matches "/".
    found = [page for page in left if Path(page).match(name) and page.count("/") == name.count("/")]
    left.difference_update(found)
    return sorted(found, key=lambda page: (not page.endswith("README.md"), page))


def page_files(root: Path) -> list[str]:
    """Every Markdown page and lesson notebook of the repository, sorted."""
    found = list(root.glob("*.md"))
    for room in ROOMS:
        for pattern in ("*.md", "lesson.ipynb", "lesson_zh.ipynb"):
            found += (root / room).rglob(pattern)
    names = (path.relative_to(root).as_posix() for path in found)
    return sorted(n for n in names if not any(piece.startswith(".") for piece in n.split("/")))
