"""Changes to a page before Sphinx collects its titles, anchors and words."""

import re

from docutils import nodes
from sphinx.util import logging

from course.site.flowchart import FlowchartError, to_svg

log = logging.getLogger(__name__)

# Chinese characters and punctuation; between two of them, or beside such punctuation, a line's end is no space.
_HAN = r"\u3400-\u9fff"
_PUNCTUATION = r"\u2014\u2018-\u201d\u2026\u3000-\u303f\uff00-\uffef"


def use_slugs(doctree: nodes.document) -> None:
    """GitHub's anchors first: they become the addresses of headings (readable ones, for Chinese headings)."""
    for section in doctree.findall(nodes.section):
        slug = section.get("slug", "")
        if slug in section["ids"]:
            section["ids"].remove(slug)
            section["ids"].insert(0, slug)


def draw_flowcharts(doctree: nodes.document) -> None:
    """Diagrams become pictures; one that cannot be read is a warning, and so an error of the build."""
    for block in list(doctree.findall(nodes.literal_block)):
        if block.get("language") == "mermaid":
            try:
                picture = to_svg(block.astext())
            except FlowchartError as error:
                log.warning("%s", error, location=block)
                continue
            block.replace_self(nodes.raw("", f'<div class="flowchart">{picture}</div>', format="html"))


def mark_captions(doctree: nodes.document) -> None:
    """A paragraph that is one emphasised text is the caption of the picture above it."""
    for paragraph in doctree.findall(nodes.paragraph):
        if len(paragraph) == 1 and isinstance(paragraph[0], nodes.emphasis):
            paragraph["classes"].append("under-picture")


def join_chinese_lines(doctree: nodes.document) -> None:
    """A line's end within a Chinese sentence is no space; HTML would show one."""
    for text in list(doctree.findall(nodes.Text)):
        if isinstance(text.parent, nodes.FixedTextElement) or "\n" not in text:
            continue
        before, after = _edge(text, -1), _edge(text, 1)
        joined = before + text.astext() + after
        joined = re.sub(
            rf"(?<=[{_HAN}])\n(?=[{_HAN}])|(?<=[{_PUNCTUATION}])\n|\n(?=[{_PUNCTUATION}])", "", joined
        )
        text.parent.replace(text, nodes.Text(joined[len(before) : len(joined) - len(after)]))


def _edge(text: nodes.Text, side: int) -> str:
    """The character that stands before (-1) or after (1) a text, in its paragraph; "" at the paragraph's edge."""
    node: nodes.Node = text
    while isinstance(node.parent, nodes.Element) and isinstance(node, nodes.Text | nodes.Inline):
        position = node.parent.index(node) + side
        if 0 <= position < len(node.parent):
            words = node.parent[position].astext()
            return (words[-1:] if side < 0 else words[:1]) or " "
        node = node.parent
    return ""


def drop_switch(reference: nodes.reference) -> None:
    """Take out a link to the page's own twin ("· 中文" in a line, "中文：x_zh.md" as one): here pages have a switch."""
    line = reference.parent
    position = line.index(reference)
    before = line[position - 1].astext().rstrip() if position else ""
    if len(line.astext()) - len(reference.astext()) <= len("Chinese: "):
        line.parent.remove(line)
    elif isinstance(line[position - 1], nodes.Text) and before.endswith("·"):
        line.remove(reference)
        line.replace(line[position - 1], nodes.Text(before.removesuffix("·").rstrip()))
