"""A notebook with its outputs, as Markdown and picture files. Nothing is executed.

Our own few lines rather than nbconvert's exporter: that one indents outputs, so that a page cannot tell them from code.
"""

import base64
import re
from pathlib import Path
from typing import Any

import nbformat

PICTURES = {"image/svg+xml": "svg", "image/png": "png", "image/jpeg": "jpg"}
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def to_markdown(notebook: Path, pictures: Path, intro: str) -> str:
    """The notebook's text; writes its pictures to the folder `pictures`, beside the page.

    Args:
        notebook: the .ipynb file, version 4.
        pictures: is made when the notebook has a picture; the links are relative to its parent.
        intro: a paragraph to put below the title.
    """
    cells = nbformat.read(notebook, as_version=4).cells
    pieces = []
    for number, cell in enumerate(cells):
        if cell.cell_type == "markdown":
            pieces.append(cell.source)
        elif cell.cell_type == "code" and cell.source.strip():
            pieces.append(fenced("python", cell.source))
            for index, output in enumerate(cell.outputs):
                pieces += _output(output, pictures / f"cell{number:02}_{index}")
    title, _, rest = "\n\n".join(pieces).partition("\n")
    if not title.startswith("# "):
        raise ValueError(f"{notebook} must begin with a text cell that begins with '# title', got {title!r}")
    return f"{title}\n\n{intro}\n{rest}\n"


def _output(output: Any, picture: Path) -> list[str]:
    if output.output_type == "stream":
        return [fenced("text", _COLOURS.sub("", output.text), "output")]
    if output.output_type == "error":
        return [fenced("text", _COLOURS.sub("", "\n".join(output.traceback)), "output")]
    for kind, suffix in PICTURES.items():
        if kind in output.data:
            picture.parent.mkdir(parents=True, exist_ok=True)
            file = picture.with_suffix(f".{suffix}")
            data = output.data[kind]
            file.write_bytes(data.encode() if suffix == "svg" else base64.b64decode(data))
            return [f"![]({file.parent.name}/{file.name})"]
    if "text/markdown" in output.data:
        return [output.data["text/markdown"]]
    if "text/html" in output.data:  # a table; blank lines would end the HTML block
        return [re.sub(r"\n\s*\n", "\n", output.data["text/html"])]
    return [fenced("text", _COLOURS.sub("", output.data.get("text/plain", "")), "output")]


def fenced(language: str, text: str, css: str = "") -> str:
    """A fenced block; its fence is longer than any in the text. With `css`, a block of that class."""
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * max(3, longest + 1)
    if not css:
        return f"{fence}{language}\n{text.rstrip()}\n{fence}"
    return f"{fence}{{code-block}} {language}\n:class: {css}\n\n{text.rstrip()}\n{fence}"
