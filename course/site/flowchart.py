"""The lessons' diagrams as pictures: the part of Mermaid's flowchart language that they use, drawn as SVG.

GitHub draws ```mermaid blocks with a script of several megabytes. Here the picture is made once, at build time: no
script, the page's own colours, light and dark. What this reader does not know is an error that names the line.

    flowchart LR
        A["text<br>second line"] --> B{"a question?"}
        B -- yes --> C["…"]
        B -->|"no"| D
        C -. "a note" .-> D
        subgraph name["title"]
            …
        end
"""

import re
from dataclasses import dataclass, field
from itertools import pairwise
from xml.sax.saxutils import escape

from course.site.layered import Cell, Wire, place

LINE, PAD_X, PAD_Y, LABEL, BOW = 20.0, 14.0, 9.0, 17.0, 34.0  # pixels; text is 14 px high, labels 13
WIDEST_TEXT, WIDEST_PICTURE = 200.0, 720.0


class FlowchartError(Exception):
    """What cannot be read, with its line."""


@dataclass
class Box:
    lines: list[str]
    question: bool = False
    group: str = ""


@dataclass
class Edge:
    start: str
    end: str
    label: str = ""
    dashed: bool = False


@dataclass
class Chart:
    across: bool  # the text says LR
    boxes: dict[str, Box] = field(default_factory=dict)
    edges: list[Edge] = field(default_factory=list)
    groups: dict[str, str] = field(default_factory=dict)


_TEXT = r'"[^"]*"|[^"\]\}|]+'
_BOX = re.compile(rf"(\w+)(?:\[\s*({_TEXT})\s*\]|\{{\s*({_TEXT})\s*\}})?")
_EDGE = re.compile(
    r'\s*(?:(-->|-\.->)(?:\|\s*("[^"]*"|[^|]*)\s*\|)?|--\s+("[^"]*"|[^"-]+?)\s+-->|-\.\s+("[^"]*"|[^".]+?)\s+\.->)\s*'
)


def read(text: str) -> Chart:
    """Parse a diagram. Raises FlowchartError."""
    first, *lines = [line.strip() for line in text.strip().splitlines()]
    head = re.fullmatch(r"flowchart (LR|TB|TD)", first)
    if not head:
        raise FlowchartError(f"a diagram must begin with 'flowchart LR' or 'flowchart TB', got {first!r}")
    chart = Chart(head[1] == "LR")
    group = ""
    for line in lines:
        opened = re.fullmatch(rf"subgraph (\w+)\[({_TEXT})\]", line)
        if opened:
            group = opened[1]
            chart.groups[group] = opened[2].strip('"')
        elif line == "end" and group:
            group = ""
        elif line:
            _read_chain(chart, line, group)
    return chart


def _read_chain(chart: Chart, line: str, group: str) -> None:
    """`A --> B --> C`, with or without the boxes' texts."""
    at, previous, arrow = 0, "", None
    while True:
        box = _BOX.match(line, at)
        if not box:
            raise FlowchartError(f"cannot read {line[at:]!r} in the diagram's line {line!r}")
        name, at = box[1], box.end()
        words = box[2] or box[3]
        if words:
            chart.boxes.setdefault(name, Box([])).lines = _wrapped(words.strip('"'))
            chart.boxes[name].question, chart.boxes[name].group = bool(box[3]), group
        chart.boxes.setdefault(name, Box([name]))  # its text may come in a later line
        if arrow:
            label = next((found for found in arrow.groups()[1:] if found), "").strip().strip('"')
            dashed = arrow[0].strip().startswith("-.")
            chart.edges.append(Edge(previous, name, label, dashed))
        if at == len(line):
            return
        arrow, previous = _EDGE.match(line, at), name
        if not arrow:
            raise FlowchartError(f"cannot read {line[at:]!r} in the diagram's line {line!r}")
        at = arrow.end()


def _width(text: str) -> float:
    """Of 14 px text in a usual sans-serif; Chinese characters are square."""
    return sum(14.0 if ord(c) > 0x2E7F else 4.6 if c in " .,:;il|'()" else 7.7 for c in text)


def _wrapped(text: str) -> list[str]:
    """Lines of a box: <br> where the text has one, and where a line would be too long."""
    lines = []
    for piece in re.split(r"<br\s*/?>", text):
        line = ""
        for word in re.findall(r"\s*(?:[\u2e80-\uffff]|[^\s\u2e80-\uffff]+)", piece):
            if line and _width(line + word) > WIDEST_TEXT and word[0] not in "，。：；、）":
                lines.append(line)
                line = word.lstrip()
            else:
                line += word
        lines.append(line.strip())
    return lines


def to_svg(text: str) -> str:
    """The picture; along the page where that is not too wide, else down it. Raises FlowchartError."""
    chart = read(text)
    across = _draw(chart, True)
    if chart.across and across[0] <= WIDEST_PICTURE:
        return across[1]
    return _draw(chart, False)[1]


@dataclass
class _Placed:
    """The boxes and wires of a chart after placing; `across` swaps the layout's axes."""

    chart: Chart
    across: bool
    cells: dict[str, Cell]
    wires: list[Wire]

    def point(self, u: float, v: float) -> tuple[float, float]:
        return (u, v) if self.across else (v, u)

    def corner_and_size(self, cell: Cell) -> tuple[float, float, float, float]:
        x, y = self.point(cell.u, cell.v)
        width, height = self.point(cell.size_u, cell.size_v)
        return x - width / 2, y - height / 2, width, height


def _placed(chart: Chart, across: bool) -> _Placed:
    def sized(width: float, height: float) -> tuple[float, float]:
        return (width, height) if across else (height, width)

    cells = {}
    for name, box in chart.boxes.items():
        width = max(map(_width, box.lines)) + 2 * PAD_X + (22 if box.question else 0)
        cells[name] = Cell(*sized(width, len(box.lines) * LINE + 2 * PAD_Y))
    numbers = {name: i for i, name in enumerate(cells)}
    wires = []
    for edge in chart.edges:
        size = sized(_width(edge.label) + 8, LABEL) if edge.label else (0.0, 0.0)
        wires.append(Wire(numbers[edge.start], numbers[edge.end], *size))
        if edge.start == edge.end:
            cells[edge.start].margin_v = LABEL if across else BOW + _width(edge.label)
    # What leaves a group comes after all of it, so that the group's frame holds its own boxes only.
    after = [
        (numbers[inside], numbers[edge.end])
        for edge in chart.edges
        for inside, box in chart.boxes.items()
        if box.group and chart.boxes[edge.start].group == box.group != chart.boxes[edge.end].group
    ]
    place(list(cells.values()), wires, after)
    return _Placed(chart, across, cells, wires)


def _draw(chart: Chart, across: bool) -> tuple[float, str]:
    """(width, SVG) of the chart in one direction."""
    placed = _placed(chart, across)
    parts, corners = [], []
    for group, title in chart.groups.items():
        members = [
            placed.corner_and_size(placed.cells[n]) for n, b in chart.boxes.items() if b.group == group
        ]
        left, top = min(m[0] for m in members) - 14, min(m[1] for m in members) - 30
        right, bottom = max(m[0] + m[2] for m in members) + 14, max(m[1] + m[3] for m in members) + 12
        corners.append((left, top, right - left, bottom - top))
        parts.append(_rect(*corners[-1], "group"))
        parts.append(_text(left + 12, top + 19, title, "title", "start"))
    for edge, wire in zip(chart.edges, placed.wires, strict=True):
        path, points = _path(placed, wire)
        dash = " dashed" if edge.dashed else ""
        parts.append(f'<path class="edge{dash}" d="{path}" marker-end="url(#arrow)"/>')
        corners += [(x, y, 0.0, 0.0) for x, y in points]
        if edge.label:
            parts.append(_label(placed, wire, edge.label, points, corners))
    for name, box in chart.boxes.items():
        x, y, width, height = placed.corner_and_size(placed.cells[name])
        corners.append((x, y, width, height))
        parts.append(_question(x, y, width, height) if box.question else _rect(x, y, width, height, "box"))
        top = y + height / 2 - (len(box.lines) - 1) * LINE / 2 + 5
        for i, line in enumerate(box.lines):
            parts.append(_text(x + width / 2, top + i * LINE, line, "words", "middle"))
    left, top = min(c[0] for c in corners) - 6, min(c[1] for c in corners) - 6
    width, height = max(c[0] + c[2] for c in corners) + 6 - left, max(c[1] + c[3] for c in corners) + 6 - top
    head = (
        f'<svg role="img" viewBox="{left:.0f} {top:.0f} {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}"><defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto-start-reverse"><path class="head" d="M0 0.5 L8 4 L0 7.5 z"/></marker></defs>'
    )
    return width, head + "".join(parts) + "</svg>"


def _path(placed: _Placed, wire: Wire) -> tuple[str, list[tuple[float, float]]]:
    """The curve of a wire, and points that it does not leave the neighbourhood of."""
    if wire.start == wire.end:
        return _loop(placed, wire)
    first, last = wire.cells[0], wire.cells[-1]
    sign = -1 if wire.backwards else 1
    points = [placed.point(first.u + sign * first.size_u / 2, _port(first, wire.cells[1]))]
    for cell in wire.cells[1:-1]:
        reach = sign * cell.size_u / 2  # straight through a label
        points += [placed.point(cell.u - reach, cell.v), placed.point(cell.u + reach, cell.v)]
    points.append(placed.point(last.u - sign * last.size_u / 2, _port(last, wire.cells[-2])))
    path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for (x0, y0), (x1, y1) in pairwise(points):
        if placed.across:
            middle = (x0 + x1) / 2
            path += f" C{middle:.1f} {y0:.1f} {middle:.1f} {y1:.1f} {x1:.1f} {y1:.1f}"
        else:
            middle = (y0 + y1) / 2
            path += f" C{x0:.1f} {middle:.1f} {x1:.1f} {middle:.1f} {x1:.1f} {y1:.1f}"
    return path, points


def _port(box: Cell, neighbour: Cell) -> float:
    """Where on its side a wire meets a box: somewhat towards where it comes from, so that wires stay apart."""
    most = max(0.0, box.size_v / 2 - 16)
    return box.v + min(most, max(-most, 0.4 * (neighbour.v - box.v)))


def _loop(placed: _Placed, wire: Wire) -> tuple[str, list[tuple[float, float]]]:
    """From a box to itself: a bow at its side."""
    cell = list(placed.cells.values())[wire.start]
    x, y, width, height = placed.corner_and_size(cell)
    right, middle = x + width, y + height / 2
    far = right + BOW
    path = (
        f"M{right:.1f} {middle - 7:.1f} C{far:.1f} {middle - 26:.1f} "
        f"{far:.1f} {middle + 26:.1f} {right:.1f} {middle + 7:.1f}"
    )
    return path, [(right, middle), (far, middle)]


def _label(
    placed: _Placed,
    wire: Wire,
    label: str,
    points: list[tuple[float, float]],
    corners: list[tuple[float, float, float, float]],
) -> str:
    """An edge's words, on a ground that hides the edge below them."""
    if wire.label is None:  # beside a loop
        x, y = points[-1]
        corners.append((x, y - LABEL / 2, _width(label) + 4, LABEL))
        return _text(x, y + 5, label, "label", "start")
    x, y, width, height = placed.corner_and_size(wire.label)
    corners.append((x, y, width, height))
    return _rect(x, y, width, height, "ground") + _text(x + width / 2, y + 13, label, "label", "middle")


def _rect(x: float, y: float, width: float, height: float, css: str) -> str:
    return f'<rect class="{css}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="6"/>'


def _question(x: float, y: float, width: float, height: float) -> str:
    middle, point = y + height / 2, 12
    corners = [
        (x, middle),
        (x + point, y),
        (x + width - point, y),
        (x + width, middle),
        (x + width - point, y + height),
        (x + point, y + height),
    ]
    return f'<polygon class="box question" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in corners)}"/>'


def _text(x: float, y: float, words: str, css: str, anchor: str) -> str:
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
