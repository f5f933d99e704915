"""The diagrams of the lessons: each is read whole, and its picture has nothing on top of anything."""

import re
import xml.etree.ElementTree as ElementTree
from itertools import combinations

import pytest

from course.registry import ROOT
from course.site.flowchart import FlowchartError, read, to_svg


def diagrams():
    for page in sorted([*ROOT.glob("*.md"), *ROOT.glob("tutorial/*/*/*.md"), *ROOT.glob("docs/*.md")]):
        for text in re.findall(r"^```mermaid\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
            yield pytest.param(text, id=f"{page.parent.name}/{page.name}")


def rectangles(picture, *css):
    """(left, top, right, bottom) of the shapes of these classes."""
    found = []
    for shape in ElementTree.fromstring(picture).iter():
        if shape.get("class", "").split(" ")[0] not in css:
            continue
        if shape.tag.endswith("rect"):
            x, y, width, height = (float(shape.get(name)) for name in ("x", "y", "width", "height"))
            found.append((x, y, x + width, y + height))
        elif shape.tag.endswith("polygon"):
            xs, ys = zip(*(map(float, pair.split(",")) for pair in shape.get("points").split()), strict=True)
            found.append((min(xs), min(ys), max(xs), max(ys)))
    return found


def overlap(a, b):
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def inside(a, b):
    return b[0] <= a[0] and b[1] <= a[1] and a[2] <= b[2] and a[3] <= b[3]


@pytest.mark.parametrize("text", list(diagrams()))
def test_every_diagram_is_drawn_with_all_its_boxes_edges_and_words_apart(text):
    chart, picture = read(text), to_svg(text)
    boxes, labels = rectangles(picture, "box"), rectangles(picture, "ground")
    assert (
        len(boxes)
        == len(chart.boxes)
        == len(set(re.findall(r"(\w+)(?:\[|\{)\"", text))) - text.count("subgraph")
    )
    assert picture.count("marker-end") == len(chart.edges) == len(re.findall(r"-->|\.->", text))
    assert len(labels) == sum(bool(edge.label) and edge.start != edge.end for edge in chart.edges)
    assert not [pair for pair in combinations([*boxes, *labels], 2) if overlap(*pair)]
    words = "".join(ElementTree.fromstring(picture).itertext())
    for label in re.findall(r'"([^"]*)"', text):
        assert re.sub(r"<br>|\s", "", label) in re.sub(r"\s", "", words)


def test_frame_of_a_group_holds_its_boxes_and_no_others():
    picture = to_svg(
        'flowchart TB\nsubgraph g["each"]\nA["a box as wide as two"] --> B["b"]\nB --> C["c"]\nend\n'
        'C --> D["d"]\nB -.-> E["e"]'
    )
    (frame,) = rectangles(picture, "group")
    boxes = rectangles(picture, "box")
    assert [inside(box, frame) for box in boxes] == [True, True, True, False, False]
    assert not any(overlap(box, frame) for box in boxes[3:])


def test_wide_chart_runs_down_the_page_and_a_narrow_one_along_it():
    def size(picture):
        root = ElementTree.fromstring(picture)
        return float(root.get("width")), float(root.get("height"))

    short = size(to_svg('flowchart LR\nA["one"] --> B["two"] --> C["three"]'))
    assert short[0] > short[1]
    long = size(to_svg("flowchart LR\n" + " --> ".join(f'N{i}["a box with some words"]' for i in range(7))))
    assert long[1] > long[0]
    assert long[0] < 300


def test_edges_run_with_the_flow_but_for_one_that_closes_a_loop():
    picture = to_svg('flowchart TB\nA["a"] --> B["b"]\nB --> C["c"]\nC --> A')
    starts_and_ends = re.findall(r'd="M[\d.-]+ ([\d.-]+) .*? ([\d.-]+)" marker-end', picture)
    assert [float(start) < float(end) for start, end in starts_and_ends] == [True, True, False]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sequenceDiagram\nA->>B: hi", "sequenceDiagram"),
        ('flowchart LR\nA["a"] ==> B["b"]', "==> B"),
        ('flowchart LR\nA(("a")) --> B["b"]', '(("a"))'),
        ("flowchart LR\nclassDef x fill:red", "classDef x"),
    ],
)
def test_what_cannot_be_read_is_named_and_never_left_out(text, words):
    with pytest.raises(FlowchartError, match=re.escape(words)):
        to_svg(text)
