"""What we add to Sphinx: links of the repository, source pages, the language switch, tidier pages."""

import importlib
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

from course.registry import ROOT
from course.site import docstrings, search, sources, tidy
from course.site.contents import read_contents
from course.site.links import SOURCE, BadLink, Links, Place, uri

log = logging.getLogger(__name__)


class Site:
    """The handlers of Sphinx's events, with what they share."""

    def __init__(self, app: Sphinx) -> None:
        self.language = app.config.language[:2]
        self.links = Links(read_contents(ROOT), self.language)
        self.files = {page.document: page.source(self.language) for page in self.links.contents.pages}
        self.wanted: set[str] = set()  # files and folders that need a page
        self.sidebars: dict[int, str] = {}

    def prepare(self, app: Sphinx, doctree: nodes.document) -> None:
        """Before anything is collected from a page."""
        tidy.use_slugs(doctree)
        tidy.draw_flowcharts(doctree)
        tidy.mark_captions(doctree)
        if self.language == "zh":
            tidy.join_chinese_lines(doctree)
        file = self.files.get(app.env.docname)
        for reference in list(doctree.findall(nodes.reference)):
            if file and self.links.is_switch(file, reference.get("refuri", "")):
                tidy.drop_switch(reference)

    def resolve(self, _app: Sphinx, doctree: nodes.document, document: str) -> None:
        """Turn the links of one page into addresses within the site."""
        for reference in list(doctree.findall(nodes.reference)):
            if "refuri" not in reference or reference.get("internal"):
                continue
            try:
                place = self.links.resolve(self.files.get(document, ""), reference["refuri"])
            except BadLink as error:
                log.warning("%s", error, location=reference)
                continue
            if place is not None:
                self._point(reference, document, place)
        for literal in list(doctree.findall(nodes.literal)):
            place = self.links.mentioned(literal.astext())
            if place is not None and not _inside_link(literal):
                reference = nodes.reference("", "", literal.deepcopy())
                self._point(reference, document, place)
                literal.replace_self(reference)

    def _point(self, reference: nodes.reference, document: str, place: Place) -> None:
        if place.file:
            self.wanted.add(place.file)
        reference["refuri"] = uri(document, self.language, place)
        reference["internal"] = True

    def source_pages(self, _app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
        yield from sources.pages(self.wanted, ROOT)

    def context(
        self,
        _app: Sphinx,
        name: str,
        _template: str,
        context: dict[str, Any],
        _doctree: nodes.document | None,
    ) -> None:
        """Every page knows its address in the other language."""
        other = "zh" if self.language == "en" else "en"
        context["switch_href"] = uri(name, self.language, Place(other, name))
        context["switch_language"] = other
        context["switch_text"] = {"en": "English", "zh": "中文"}[other]
        if name.startswith(
            f"{SOURCE}/"
        ):  # the same sidebar on all of one depth; making one takes half a second
            context["toctree"] = partial(self._sidebar, name.count("/"), context["toctree"])

    def _sidebar(self, depth: int, make: Callable[..., str], **options: Any) -> str:
        if depth not in self.sidebars:
            self.sidebars[depth] = make(**options)
        return self.sidebars[depth]


def _inside_link(node: nodes.Node) -> bool:
    while node.parent is not None:
        if isinstance(node, nodes.reference | nodes.title):
            return True
        node = node.parent
    return False


def linkcode_resolve(_domain: str, info: dict[str, str]) -> str | None:
    """The [source] link of an object: its file and line."""
    if not info["module"]:  # an attribute that a class's docstring describes
        return None
    thing: Any = importlib.import_module(info["module"])
    for name in info["fullname"].split("."):
        thing = getattr(thing, name, None)
    if isinstance(thing, property):
        thing = thing.fget
    try:
        thing = inspect.unwrap(thing)
        file, (_, line) = inspect.getsourcefile(thing) or "", inspect.getsourcelines(thing)
    except (TypeError, OSError, AttributeError):  # plain data has no line of its own
        return None
    return f"{SOURCE}:{file.removeprefix(f'{ROOT}/')}#L{line}" if file.startswith(f"{ROOT}/") else None


def setup(app: Sphinx) -> dict[str, bool]:
    docstrings.setup(app)
    search.setup(app)
    app.connect("builder-inited", _connect)
    return {"parallel_read_safe": False, "parallel_write_safe": False}


def _connect(app: Sphinx) -> None:
    site = Site(app)
    app.connect("doctree-read", site.prepare, priority=100)  # before the collectors of titles and anchors
    app.connect("doctree-resolved", site.resolve)
    app.connect("html-collect-pages", site.source_pages)
    app.connect("html-page-context", site.context, priority=400)  # before the theme's, at 500
