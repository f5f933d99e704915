"""Check the built site as a reader's browser would find it: links, anchors, pictures, and nothing from elsewhere.

Sphinx has its own check of links while it builds; this one reads the HTML that came out, whatever wrote it.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Attributes that make a browser load something (a link is only followed when it is clicked).
LOADS = {
    ("link", "href"),
    ("script", "src"),
    ("img", "src"),
    ("img", "srcset"),
    ("source", "src"),
    ("iframe", "src"),
    ("video", "src"),
    ("object", "data"),
    ("use", "href"),
}
_CSS_URL = re.compile(r"url\(\s*['\"]?([^'\")]+)['\"]?\s*\)|@import\s+['\"]([^'\"]+)['\"]")


@dataclass
class Report:
    """What was looked at, and what is wrong with it, one sentence each."""

    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


class _Page(HTMLParser):
    """The ids of a page, what it links to, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.ids: Counter[str] = Counter()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.switches: list[str] = []
        self.language = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "html":
            self.language = values.get("lang", "")[:2]
        if "id" in values:
            self.ids[values["id"]] += 1
        for name in ("href", "src", "srcset", "data"):
            if not values.get(name):
                continue
            passive = tag == "link" and values.get("rel") in ("alternate", "next", "prev", "search", "index")
            (self.loads if (tag, name) in LOADS and not passive else self.links).append(values[name])
        if "language-switch" in values.get("class", "").split():
            self.switches.append(values.get("href", ""))
        if "style" in values:
            self.loads += _css_urls(values["style"])


def _css_urls(text: str) -> list[str]:
    return [a or b for a, b in _CSS_URL.findall(text)]


def check(site: Path) -> Report:
    """Read every page and style sheet of the site."""
    report = Report()
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    if not pages:
        report.problems.append(f"{site} holds no page: build the site first")
    for path, page in pages.items():
        report.counts["pages"] += 1
        _check_page(site, path, page, pages, report)
    for path in sorted(site.rglob("*.css")):
        report.counts["style sheets"] += 1
        for target in _css_urls(path.read_text(encoding="utf-8")):
            _check_load(site, path, target, report)
    return report


def _check_page(site: Path, path: Path, page: _Page, pages: dict[Path, _Page], report: Report) -> None:
    name = path.relative_to(site)
    for anchor, count in page.ids.items():
        if count > 1:
            report.problems.append(f"{name}: the id {anchor!r} is there {count} times")
    for target in page.loads:
        _check_load(site, path, target, report)
    for target in page.links:
        report.counts["links"] += 1
        _check_link(site, path, target, pages, report)
    chinese = name.parts[0] == "zh"
    if page.language != ("zh" if chinese else "en"):
        report.problems.append(f"{name}: the page says that its language is {page.language!r}")
    twin = site / Path(*name.parts[1:]) if chinese else site / "zh" / name
    found = {(path.parent / unquote(switch)).resolve() for switch in page.switches}
    if found != {twin.resolve()}:
        report.problems.append(f"{name}: the language switch does not lead to {twin.relative_to(site)}")
    report.counts["switches"] += len(page.switches)


def _check_load(site: Path, path: Path, target: str, report: Report) -> None:
    if target.startswith(("data:", "#")):
        return
    report.counts["loaded files"] += 1
    name, parts = path.relative_to(site), urlsplit(target)
    if parts.scheme or parts.netloc:
        report.problems.append(f"{name}: loads {target} from another machine")
    elif not (path.parent / unquote(parts.path)).is_file():
        report.problems.append(f"{name}: loads {target}, which is not there")


def _check_link(site: Path, path: Path, target: str, pages: dict[Path, _Page], report: Report) -> None:
    parts = urlsplit(target)
    name = path.relative_to(site)
    if parts.scheme in ("http", "https", "mailto"):
        report.counts["links out"] += 1
        return
    if parts.scheme or parts.netloc or parts.path.startswith("/"):
        report.problems.append(f"{name}: the link {target} works on no reader's machine")
        return
    there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if not there.is_relative_to(site.resolve()) or not there.is_file():
        report.problems.append(f"{name}: the link {target} leads nowhere")
    elif parts.fragment:
        report.counts["anchors"] += 1
        page = pages.get(site / there.relative_to(site.resolve()))
        if page is None or unquote(parts.fragment) not in page.ids:
            report.problems.append(f"{name}: the link {target} leads to a page without that anchor")
