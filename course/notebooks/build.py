"""Writes `lesson.ipynb` and `lesson_zh.ipynb` of a lesson, with the outputs of a run on the finished code.

What differs from run to run or from machine to machine is not in them: no times, no paths, no metadata.
"""

import io
from base64 import b64encode

import nbformat
from PIL import Image

from course.errors import CourseError
from course.notebooks.execute import execute, kind, picture
from course.notebooks.source import FILES, read_cells, source_of
from course.progress import write_text
from course.registry import ROOT, Lesson


def build(lesson: Lesson) -> list[str]:
    """Execute and write both files; returns their names. An error in a cell is a CourseError, nothing is written."""
    source = source_of(lesson)
    cells = read_cells(source)
    texts = {}
    for language, name in FILES.items():
        done = execute(lesson, cells, language, "solutions")
        if done.errors:
            raise CourseError(f"{source.relative_to(ROOT)} in {language}: {done.errors[0]}")
        texts[lesson.folder / name] = text_of(done.notebook)
    for path, text in texts.items():
        write_text(path, text)
    return [str(path.relative_to(ROOT)) for path in texts]


def text_of(notebook: nbformat.NotebookNode) -> str:
    """The file's text: cells and outputs, small pictures, and nothing of what the run has left besides."""
    for cell in notebook.cells:
        cell.metadata = {}
        for output in cell.get("outputs", []):
            if kind(output) == "figure":
                output.data = {"image/png": b64encode(small(picture(output))).decode()}
                output.metadata = {}
    return nbformat.writes(notebook) + "\n"


def small(png: bytes) -> bytes:
    """The picture in 64 colours: a quarter of the size, and no difference that an eye would see in a plot."""
    few = Image.open(io.BytesIO(png)).quantize(64, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    written = io.BytesIO()
    few.save(written, "PNG", optimize=True)
    return written.getvalue()
