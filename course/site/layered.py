"""Place the boxes of a directed graph in layers, so that edges run one way: K. Sugiyama, S. Tagawa, M. Toda (1981).

Layers by longest path, edges through empty places in the layers between (so that they do not run through boxes), order
by barycentres, then places by the mean of the neighbours. For graphs of a dozen boxes: no effort is made to be fast.

Axes: u runs along the flow, v across it. All lengths are pixels.
"""

from dataclasses import dataclass, field
from itertools import pairwise

GAP_U, GAP_V = 34.0, 22.0
SWEEPS = 24


@dataclass
class Cell:
    """Something that takes a place in a layer: a box, the label of an edge, or a point that an edge passes."""

    size_u: float = 0.0
    size_v: float = 0.0
    layer: int = 0
    u: float = 0.0  # the centre
    v: float = 0.0
    margin_v: float = 0.0  # more room, on both sides
    before: list["Cell"] = field(default_factory=list, repr=False)
    after: list["Cell"] = field(default_factory=list, repr=False)


@dataclass
class Wire:
    """An edge: from one box to another, with the size of its label (0 without one)."""

    start: int
    end: int
    label_u: float = 0.0
    label_v: float = 0.0
    backwards: bool = False  # set by `place`: it runs against the flow
    cells: list[Cell] = field(default_factory=list)  # set by `place`: what it passes, from start to end
    label: Cell | None = None


def place(boxes: list[Cell], wires: list[Wire], after: list[tuple[int, int]]) -> None:
    """Set u and v of all boxes, and what the wires pass.

    Args:
        boxes: with their sizes; wires name them by number.
        after: pairs (a, b): b lies in a later layer than a, though no edge says so.
    """
    straight = [wire for wire in wires if wire.start != wire.end]
    _find_backwards(len(boxes), straight)
    _set_layers(boxes, straight, after)
    cells = list(boxes)
    for wire in straight:
        cells += _lay(wire, boxes)
    layers: list[list[Cell]] = [[] for _ in range(max(cell.layer for cell in cells) + 1)]
    for cell in cells:
        layers[cell.layer].append(cell)
    _order(layers)
    _set_u(layers)
    _set_v(layers)


def _find_backwards(count: int, wires: list[Wire]) -> None:
    """Mark the wires that close a cycle, as a walk in the order of the text meets them."""
    state = [0] * count  # 0 not seen, 1 on the way, 2 done

    def visit(box: int) -> None:
        state[box] = 1
        for wire in wires:
            if wire.start == box:
                wire.backwards = state[wire.end] == 1
                if state[wire.end] == 0:
                    visit(wire.end)
        state[box] = 2

    for box in range(count):
        if state[box] == 0:
            visit(box)


def _set_layers(boxes: list[Cell], wires: list[Wire], after: list[tuple[int, int]]) -> None:
    """The longest path from a source; an edge with a label spans two layers, so that the label has one between."""
    steps = [
        (wire.end, wire.start, 2 if wire.label_u else 1)
        if wire.backwards
        else (wire.start, wire.end, 2 if wire.label_u else 1)
        for wire in wires
    ] + [(a, b, 1) for a, b in after]
    for _ in range(len(boxes) + 1):
        for start, end, length in steps:
            boxes[end].layer = max(boxes[end].layer, boxes[start].layer + length)


def _lay(wire: Wire, boxes: list[Cell]) -> list[Cell]:
    """Make the cells that a wire passes between its boxes, and link neighbours."""
    first, last = boxes[wire.start], boxes[wire.end]
    if wire.backwards:
        first, last = last, first
    passed = [Cell(layer=layer, size_v=4.0) for layer in range(first.layer + 1, last.layer)]
    if wire.label_u:
        wire.label = passed[len(passed) // 2]
        wire.label.size_u, wire.label.size_v = wire.label_u, wire.label_v
    chain = [first, *passed, last]
    for a, b in pairwise(chain):
        a.after.append(b)
        b.before.append(a)
    wire.cells = chain[::-1] if wire.backwards else chain
    return passed


def _order(layers: list[list[Cell]]) -> None:
    """Sort each layer by the mean place of the neighbours, down and up; keep the order with the fewest crossings."""
    best, fewest = [list(layer) for layer in layers], _crossings(layers)
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for layer in layers if down else reversed(layers):
            places = {id(cell): i for other in layers for i, cell in enumerate(other)}

            def mean(cell: Cell, down: bool = down, places: dict[int, int] = places) -> float:
                near = cell.before if down else cell.after
                return sum(places[id(n)] for n in near) / len(near) if near else places[id(cell)]

            layer.sort(key=mean)
        crossings = _crossings(layers)
        if crossings < fewest:
            best, fewest = [list(layer) for layer in layers], crossings
    for layer, order in zip(layers, best, strict=True):
        layer[:] = order


def _crossings(layers: list[list[Cell]]) -> int:
    total = 0
    for upper, lower in pairwise(layers):
        places = {id(cell): i for i, cell in enumerate(lower)}
        edges = [(i, places[id(n)]) for i, cell in enumerate(upper) for n in cell.after]
        total += sum((a - c) * (b - d) < 0 for k, (a, b) in enumerate(edges) for c, d in edges[:k])
    return total


def _set_u(layers: list[list[Cell]]) -> None:
    edge = 0.0
    for layer in layers:
        depth = max((cell.size_u for cell in layer), default=0.0)
        for cell in layer:
            cell.u = edge + depth / 2
        edge += depth + GAP_U


def _set_v(layers: list[list[Cell]]) -> None:
    """Pull each cell to the mean of its neighbours, as far as the others in its layer leave room."""
    for layer in layers:
        _settle(layer, [0.0] * len(layer))
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for layer in layers if down else reversed(layers):
            wishes = []
            for cell in layer:
                near = (cell.before if down else cell.after) or [*cell.before, *cell.after] or [cell]
                wishes.append(sum(n.v for n in near) / len(near))
            _settle(layer, wishes)
    lowest = min(cell.v - cell.size_v / 2 for layer in layers for cell in layer)
    for layer in layers:
        for cell in layer:
            cell.v -= lowest


def _settle(layer: list[Cell], wishes: list[float]) -> None:
    """Places near the wishes, in order and apart: the mean of pushing all to one side and all to the other."""
    apart = [(a.size_v + b.size_v) / 2 + a.margin_v + b.margin_v + GAP_V for a, b in pairwise(layer)]
    low, high = list(wishes), list(wishes)
    for i in range(1, len(layer)):
        low[i] = max(low[i], low[i - 1] + apart[i - 1])
    for i in range(len(layer) - 2, -1, -1):
        high[i] = min(high[i], high[i + 1] - apart[i])
    for cell, a, b in zip(layer, low, high, strict=True):
        cell.v = (a + b) / 2
