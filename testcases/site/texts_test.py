"""Notebooks, docstrings, line ends and search words, as they go into the pages."""

import base64

import nbformat
import pytest
from docutils import nodes
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from course.site import tidy
from course.site.docstrings import rewrite, with_lists
from course.site.notebook import fenced, to_markdown
from course.site.search import words

PNG = base64.b64encode(b"\x89PNG picture").decode()


def convert(tmp_path, *cells):
    path = tmp_path / "lesson.ipynb"
    nbformat.write(new_notebook(cells=[new_markdown_cell("# Title\n\nWords $x$."), *cells]), path)
    return to_markdown(path, tmp_path / "pictures", "Intro.")


def test_notebook_becomes_markdown_with_its_outputs_and_pictures(tmp_path):
    text = convert(
        tmp_path,
        new_code_cell(
            "print('hi')",
            outputs=[
                new_output("stream", text="\x1b[31mhi\x1b[0m\n"),
                new_output("display_data", {"image/png": PNG, "text/plain": "<Figure>"}),
                new_output(
                    "execute_result", {"text/html": "<table>\n\n<tr></tr></table>", "text/plain": "t"}
                ),
                new_output("execute_result", {"text/plain": "```\n42"}),
            ],
        ),
        new_code_cell(""),
    )
    assert text == (
        "# Title\n\nIntro.\n\nWords $x$.\n\n```python\nprint('hi')\n```\n\n"
        "```{code-block} text\n:class: output\n\nhi\n```\n\n"
        "![](pictures/cell01_1.png)\n\n<table>\n<tr></tr></table>\n\n"
        "````{code-block} text\n:class: output\n\n```\n42\n````\n"
    )
    assert (tmp_path / "pictures" / "cell01_1.png").read_bytes() == b"\x89PNG picture"


def test_notebook_without_a_title_is_refused(tmp_path):
    path = tmp_path / "lesson.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("1")]), path)
    with pytest.raises(ValueError, match="must begin with a text cell"):
        to_markdown(path, tmp_path, "")


def test_fence_is_longer_than_any_in_the_text():
    assert fenced("text", "a\n````\nb").startswith("`````text\n")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("`lr` and ``x_``", "``lr`` and ``x_``"),
        (r"so $\sum_i x_i$ is", r"so :math:`\sum_i x_i` is"),
        ("$a\n    b$", ":math:`a b`"),
        ("costs $5 and $6", "costs $5 and $6"),
        ("call unscale_ once, x_i not", r"call unscale\_ once, x_i not"),
        ("|got − want|", r"\|got − want\|"),
        ("*args, **kwargs", r"\*args, \*\*kwargs"),
        ("a *micro-batch* and **bold**, 2 * 3", "a *micro-batch* and **bold**, 2 * 3"),
    ],
)
def test_docstring_means_in_sphinx_what_it_means_in_an_editor(text, wanted):
    assert rewrite(text) == wanted


def test_entries_of_a_docstring_become_a_list_and_paragraphs_stay():
    text = (
        "Counters.\n\nepoch: finished\n    ones. And: more.\nlr: used\n\nA sentence that goes\non: like this."
    )
    assert with_lists(text) == (
        "Counters.\n\n- epoch: finished\n  ones. And: more.\n- lr: used\n\nA sentence that goes\non: like this."
    )
    assert with_lists("Args:\n    x: a\n        b") == "Args:\n    x: a\n        b"  # napoleon's own
    assert (
        with_lists("Returns (of a call):\n    x: a\n    y: b") == "**Returns (of a call):**\n\n- x: a\n- y: b"
    )


def paragraph(*pieces):
    found = nodes.paragraph()
    found += pieces
    tidy.join_chinese_lines(found)
    return found.astext()


def test_line_ends_vanish_within_chinese_and_stay_between_words():
    assert paragraph(nodes.Text("中文\n中文。\nEnglish，\n中")) == "中文中文。English，中"
    assert paragraph(nodes.Text("English\nwords 中\nEnglish")) == "English\nwords 中\nEnglish"
    # the line ends at the edge of another node
    assert paragraph(nodes.strong("", "粗体。"), nodes.Text("\n"), nodes.Text("后面")) == "粗体。后面"
    assert paragraph(nodes.Text("前面"), nodes.Text("\n"), nodes.literal("", "code")) == "前面\ncode"
    assert paragraph(nodes.literal_block("", "一\n二")) == "一\n二"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("断点续训", ["断点", "点续", "续训"]),
        ("用 AdamW优化器, found_inf", ["用", "AdamW", "优化", "化器", "found_inf"]),
        ("x² — θ", ["x²", "θ"]),
    ],
)
def test_words_of_a_text_are_latin_words_and_chinese_pairs(text, wanted):
    assert words(text) == wanted
