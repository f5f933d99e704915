"""Runs the cells of a notebook in a clean kernel, and says what came of it."""

import os
import re
import struct
import tempfile
import time
from base64 import b64decode
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from course.notebooks.source import FILES, Cell
from course.registry import ROOT, Lesson

LIMIT = 60  # seconds that a notebook may take
PATIENCE = 300  # seconds that a cell is waited for, also on a busy machine
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Execution:
    """A notebook with its outputs; `errors` has a line for each cell that raised."""

    notebook: NotebookNode
    seconds: float
    errors: list[str]

    @property
    def figures(self) -> int:
        return sum(kind(output) == "figure" for cell in code_cells(self.notebook) for output in cell.outputs)


def assemble(cells: list[Cell], language: str) -> NotebookNode:
    """The cells as a notebook without outputs."""
    made = []
    for number, cell in enumerate(cells, 1):
        new = nbformat.v4.new_code_cell if cell.kind == "code" else nbformat.v4.new_markdown_cell
        made.append(new(cell.text(language), id=f"cell-{number:02d}"))
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return nbformat.v4.new_notebook(cells=made, metadata=metadata)


def execute(lesson: Lesson, cells: list[Cell], language: str, impl: str, root: Path = ROOT) -> Execution:
    """Run all cells in a kernel of their own, in the lesson's folder, on the code of `impl`.

    `root` is the copy of the course whose `course` package the kernel imports.
    """
    notebook = assemble(cells, language)
    folder = root / lesson.folder.relative_to(ROOT)
    client = NotebookClient(
        notebook,
        timeout=PATIENCE,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        allow_errors=True,
        coalesce_streams=True,
        record_timing=False,
        extra_arguments=["--log-level=ERROR"],  # it warns that a local kernel is not encrypted
    )
    began = time.monotonic()
    lost = []
    with tempfile.TemporaryDirectory() as scratch:
        try:
            client.execute(env=_environment(folder / FILES[language], impl, root, scratch))
        except (CellTimeoutError, DeadKernelError) as error:
            lost.append(str(error).strip().splitlines()[0])
    seconds = time.monotonic() - began
    notebook.metadata = assemble(cells, language).metadata  # without what the client adds about this Python
    errors = [
        f"{cell.id}: {output.ename}: {_ESCAPES.sub('', output.evalue)}"
        for cell in code_cells(notebook)
        for output in cell.outputs
        if output.output_type == "error"
    ]
    return Execution(notebook, seconds, errors + lost)


def _environment(notebook: Path, impl: str, root: Path, scratch: str) -> dict[str, str]:
    """What the kernel is started with; nothing of the user's IPython configuration gets into the outputs."""
    return {
        **os.environ,
        "PYTHONPATH": str(root),
        "COURSE_IMPL": impl,
        "JPY_SESSION_NAME": str(notebook),  # the notebook's language is read from its name
        "IPYTHONDIR": scratch,
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "OMP_NUM_THREADS": "1",
    }


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kind(output: NotebookNode) -> str:
    """ "figure", "text" (what was printed), "error", or the first MIME type of anything else."""
    if output.output_type == "stream":
        return "text" if output.name == "stdout" else output.name
    if output.output_type == "error":
        return "error"
    return "figure" if "image/png" in output.data else next(iter(output.data))


def picture(output: NotebookNode) -> bytes:
    return b64decode(output.data["image/png"])


def picture_size(png: bytes) -> tuple[int, int]:
    """Width and height in pixels, from the header of a PNG file."""
    return struct.unpack(">II", png[16:24])
