"""Where a link leads: to a page of the site, to a page that shows a source file or folder, or out of the site.

The pages' links are those that GitHub understands: relative paths, GitHub's heading anchors. Two schemes exist in
generated text only: `document:NAME` is a page of the site, `source:PATH` a file of the repository.
"""

import posixpath
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from course.registry import ROOT
from course.site.contents import Contents

SOURCE = "source"  # the folder of the site that holds the pages of source files


@dataclass(frozen=True)
class Place:
    """Where a link leads within the site."""

    language: str
    document: str  # the address from the language's root, without .html
    anchor: str = ""
    file: str = ""  # the file or folder that the page shows, when it is a source page


class BadLink(Exception):
    """A link that leads nowhere: the sentence says what was looked for."""


@dataclass(frozen=True)
class Links:
    """Resolves the links of the pages in one language."""

    contents: Contents
    language: str
    root: Path = ROOT

    def resolve(self, page: str, href: str) -> Place | None:
        """Where href, on the page that lies in the file `page`, leads; None: out of the site, or on the same page.

        A link to a page leads to it in the reader's language, whichever file it names; but a page's link to its
        own twin changes the language, and so does an English page's link to a Chinese file.

        Raises:
            BadLink: nothing lies there.
        """
        path, _, anchor = href.partition("#")
        scheme = re.match(r"([a-z][a-z0-9+.-]*):", path)
        if not path or (scheme and scheme[1] not in ("document", SOURCE)):
            return None
        if scheme and scheme[1] == "document":
            return Place(self.language, path.removeprefix("document:"), anchor)
        if scheme:
            return self._source(path.removeprefix(f"{SOURCE}:"), anchor)
        target = posixpath.normpath(posixpath.join(posixpath.dirname(page), unquote(path)))
        if target.startswith(("..", "/")):
            raise BadLink(f"{href} leads out of the repository")
        for name in (target, posixpath.normpath(posixpath.join(target, "README.md"))):
            if name in self.contents.by_file:
                return self._page(page, name, anchor)
        if not (self.root / target).exists():
            raise BadLink(f"{href} leads nowhere: there is no {target}")
        return self._source(target, anchor)

    def is_switch(self, page: str, href: str) -> bool:
        """Whether this link leads to the page's own twin in the other language."""
        try:
            place = self.resolve(page, href)
        except BadLink:  # is reported where links are resolved
            return False
        return (
            place is not None
            and place.language != self.language
            and not place.anchor
            and self._own(page, place)
        )

    def _own(self, page: str, place: Place) -> bool:
        return place.document == self.contents.by_file[page][0].document

    def mentioned(self, text: str) -> Place | None:
        """The source page of a file that a text names by its path (`training/trainer.py`), if it may be shown.

        Answers and the reader's own code are not: the text did not ask for a link there.
        """
        if not re.fullmatch(r"(?:training|course|testcases|benchmarks)/[\w./-]+\.(?:py|toml|yaml)", text):
            return None
        return self._source(text, "") if (self.root / text).is_file() else None

    def _page(self, page: str, name: str, anchor: str) -> Place:
        here = self.contents.by_file.get(page, (None, ""))[0]
        target, language = self.contents.by_file[name]
        twin = target == here and language != self.language
        leaves = language == "zh" and self.language == "en"
        return Place(language if twin or leaves else self.language, target.document, anchor)

    def _source(self, file: str, anchor: str) -> Place:
        return Place(self.language, f"{SOURCE}/{'' if file == '.' else file + '/'}index", anchor, file)


def uri(start: str, language: str, place: Place) -> str:
    """The relative address of `place` from the document `start` in `language`. English is the site's root."""

    def address(name: str, tongue: str) -> str:
        return ("zh/" if tongue == "zh" else "") + name + ".html"

    path = posixpath.relpath(
        address(place.document, place.language), posixpath.dirname(address(start, language)) or "."
    )
    return path + (f"#{place.anchor}" if place.anchor else "")
