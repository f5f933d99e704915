"""A drawing on a card of its own, so that it can be read on a light page and on a dark one. Used by make_figures.py."""

from xml.sax.saxutils import escape

FONT = (
    "system-ui, -apple-system, 'Segoe UI', 'Noto Sans', 'Noto Sans CJK SC', 'PingFang SC', "
    "'Microsoft YaHei', sans-serif"
)

# class: (light, dark). Blue, vermilion and green are told apart by colour-blind readers, too.
COLORS = {
    "card": ("#ffffff", "#0d1117"),
    "rim": ("#d0d7de", "#3d444d"),
    "ink": ("#1f2328", "#e6edf3"),
    "quiet": ("#59636e", "#9da7b1"),
    "blue": ("#0061a8", "#6cb6ff"),
    "red": ("#b8470b", "#ff9e64"),
    "green": ("#00704f", "#56d4a4"),
    "blue-box": ("#eaf3fb", "#12243a"),
    "green-box": ("#e8f6ef", "#10291f"),
    "red-box": ("#fdf1e7", "#33210f"),
    "trace": ("#c9d1d9", "#3d444d"),
}


class Card:
    """An SVG picture, `width` × `height` units; a unit is a pixel where the page has room."""

    def __init__(self, width: int, height: int, title: str) -> None:
        """`title` is what a screen reader says."""
        self.width, self.height, self.title = width, height, title
        self.parts: list[str] = []

    def text(
        self, x: float, y: float, words: str, color: str = "ink", size: int = 14, more: str = ""
    ) -> None:
        """`more`: further attributes, such as `text-anchor="middle"`."""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" class="{color}" font-size="{size}" {more}>{escape(words)}</text>'
        )

    def box(self, x: float, y: float, width: float, height: float, fill: str, rim: str = "rim") -> None:
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="8" '
            f'class="{fill} {rim}-line"/>'
        )

    def path(self, points: list[tuple[float, float]], color: str, width: float = 1.5, more: str = "") -> None:
        """A line through the points, in order."""
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(
            f'<polyline points="{places}" class="{color}-line" fill="none" stroke-width="{width:g}" {more}/>'
        )

    def render(self) -> str:
        """The file's text."""
        rules = [
            [f".{name}{{fill:{c[i]}}}.{name}-line{{stroke:{c[i]}}}" for name, c in COLORS.items()]
            for i in (0, 1)
        ]
        light, dark = ("".join(side) for side in rules)
        style = f"text{{font-family:{FONT}}}{light}@media(prefers-color-scheme:dark){{{dark}}}"
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" role="img">'
        )
        across, down = self.width - 1, self.height - 1
        card = f'<rect x="0.5" y="0.5" width="{across}" height="{down}" rx="10" class="card rim-line"/>'
        lines = [
            head,
            f"<title>{escape(self.title)}</title>",
            f"<style>{style}</style>",
            card,
            *self.parts,
            "</svg>",
        ]
        return "\n".join(lines) + "\n"
