"""`course pages`: every page has its twin, nothing has drifted apart, and every kind of drift is seen."""

import json

import pytest

from course.drift import EXEMPT, check
from course.registry import ROOT

ENGLISH = """# Toy

[中文](page_zh.md)

One paragraph with `lr`, 0.25 and task 2.3.

## Numbers

| name | value |
| --- | --- |
| steps | 10 |
| 1 | 1.15 × |

- first
- second

![a curve](figure.svg)

### Formulas

$$y = x \\text{ if } x > 0$$

Here $x$ is [the input](other.md#second-part), see [code](code.py) and [elsewhere](https://example.org/a).

```bash
make toy        # makes it
# a remark
```

```console
$ make toy
3  # made
```

```text
one ──► 0.5
```

```mermaid
flowchart LR
    A["batch"] --> B["loss"]
```

```output
expected 0.125
```

The report says `got`, and `expected`.
"""

CHINESE = """# 玩具

[English](page.md)

一段话：`lr`、0.25，以及任务 2.3。

## 数字

| 名字 | 数值 |
| --- | --- |
| 步数 | 10 |
| 1 | 1.15 倍 |

- 第一
- 第二

![一条曲线](figure_zh.svg)

### 公式

$$y = x \\text{ 若 } x > 0$$

这里 $x$ 是[输入](other_zh.md#第二部分)，见[代码](code.py)和[别处](https://example.org/a)。

```bash
make toy        # 做出来
# 备注
```

```console
$ make toy
3  # made
```

```text
一 ──► 0.5
```

```mermaid
flowchart LR
    A["批次"] --> B["损失"]
```

```output
应为 0.125
换行
```

报告里有 `得到` 和 `expected`。
"""

DRIFTS = {
    "heading level": ("### 公式", "## 公式", "page.md:19 and page_zh.md:19: the headings part: `### Formulas` and"),
    "heading more": ("```text", "## 尾巴\n\n```text", "the headings part: no heading and `## 尾巴`"),
    "paragraph": ("- 第一", "多出一段。\n\n- 第一", "page.md:7 and page_zh.md:7: 2 and 3 paragraphs"),
    "list item": ("- 第二", "- 第二\n- 第三", "2 and 3 list items"),
    "task id": ("任务 2.3", "任务 2.4", "decimal numbers: only in the first `2.3`, only in the second `2.4`"),
    "name": ("`lr`", "`rl`", "inline code: only in the first `lr`, only in the second `rl`"),
    "table cell": ("1.15 倍", "1.16 倍", "decimal numbers: only in the first `1.15`"),
    "table integer": ("| 步数 | 10 |", "| 步数 | 11 |", "page.md:9 and page_zh.md:9: row 2 of the tables: `10`"),
    "table row": ("| 步数 | 10 |\n", "", "tables of 3 and 2 rows"),
    "table column": ("| 步数 | 10 |", "| 步数 | 10 | |", "row 2 of the tables has 2 and 3 cells"),
    "table gone": ("| 名字 | 数值 |\n| --- | --- |\n| 步数 | 10 |\n| 1 | 1.15 倍 |\n", "", "1 and 0 tables"),
    "figure": ("figure_zh.svg", "code.py", "figures: only in the first `figure.svg`"),
    "figure missing": ("figure_zh.svg", "figur_zh.svg", "figur_zh.svg leads nowhere"),
    "formula": ("$x$ 是", "$z$ 是", "formulas: only in the first `x`, only in the second `z`"),
    "formula gone": ("这里 $x$ 是", "这里是", "formulas: only in the first `x`, only in the second nothing"),
    "displayed formula": ("x > 0$$", "x < 0$$", "formulas: only in the first `y=xx>0`"),
    "link away": ("https://example.org/a", "https://example.org/b", "links: only in the first `https://example.org/a`"),
    "link to a file": ("(code.py)", "(figure.svg)", "links: only in the first `code.py`"),
    "link nowhere": ("(code.py)", "(cod.py)", "page_zh.md:19: cod.py leads nowhere"),
    "link to no heading": ("#第二部分", "#第三部分", "other_zh.md#第三部分: no such heading"),
    "link to another heading": ("#第二部分", "#第一部分", "links: only in the first `./other.md heading 3`"),
    "link in the other language": ("other_zh.md#第二部分", "other.md#second-part", "leads to the other language"),
    "code": ("make toy        # 做出来", "make tox        # 做出来", "line 1 of the code blocks: `make toy` and"),
    "code output": ("3  # made", "3  # 做好", "page.md:30 and page_zh.md:30: line 2 of the code blocks: `3  # made`"),
    "code line": ("# 备注\n", "", "code blocks of 2 and 1 lines"),
    "code language": ("```bash", "```sh", "code blocks in `bash` and in `sh`"),
    "code gone": ("```mermaid\nflowchart LR\n    A[\"批次\"] --> B[\"损失\"]\n```\n", "", "5 and 4 code blocks"),
    "arrow": ("--> B", "--- B", "diagrams with 1 and 0 arrows"),
    "output": ("应为 0.125", "应为 0.25", "numbers of the output: only in the first `0.125`"),
    "message": ("`得到` 和 `expected`", "`得到` 和 `expecte`", "only in the second `expecte`"),
    "message gone": ("`得到` 和", "得到和", "inline code: only in the first `got`, only in the second nothing"),
    "diagram": ("一 ──► 0.5", "一 ──► 0.6", "numbers of the diagrams: only in the first `0.5`"),
}  # fmt: skip


@pytest.fixture
def site(tmp_path):
    """A small course with one pair of pages, and what they lead to."""
    for name, text in {
        "page.md": ENGLISH,
        "page_zh.md": CHINESE,
        "other.md": "# Other\n\n## First part\n\n## Second part\n",
        "other_zh.md": "# 另一页\n\n## 第一部分\n\n## 第二部分\n",
        "figure.svg": "",
        "figure_zh.svg": "",
        "code.py": "",
        "CHANGELOG.md": "# Changes\n",
    }.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_pages_of_this_repository_have_not_drifted():
    tally, problems = check(ROOT)
    print(" ".join(f"{count} {what}," for what, count in tally.rows()))
    assert not problems, "\n".join(problems)
    assert tally.pairs >= 15


def test_good_pair_has_no_difference_and_everything_in_it_is_counted(site):
    tally, problems = check(site)
    assert problems == []
    counts = {what: int(count) for what, count in tally.rows()}
    assert counts == {
        "pairs": 2,
        "headings": 6,
        "paragraphs": 7,
        "code blocks": 5,
        "inline code": 3,
        "tables": 1,
        "figures": 1,
        "links": 4,
        "formulas": 2,
        "decimals": 3,
    }


@pytest.mark.parametrize(("old", "new", "says"), DRIFTS.values(), ids=DRIFTS)
def test_each_drift_is_reported_where_it_is(site, edit, old, new, says):
    edit(site / "page_zh.md", old, new)
    problems = check(site)[1]
    assert any(says in problem for problem in problems), problems
    assert len(problems) <= 2, problems


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("page.md", "page_zh.md has no English twin page.md"),
        ("page_zh.md", "page.md has no Chinese twin page_zh.md"),
    ],
)
def test_page_without_its_twin_is_reported(site, name, says):
    (site / name).unlink()
    assert says in check(site)[1]


def test_exempt_pages_exist_and_say_why():
    for name, reason in EXEMPT.items():
        assert (ROOT / name).is_file()
        assert len(reason) > 10


def test_notebooks_are_compared_cell_by_cell(tmp_path):
    def write(name, title, code):
        cells = [
            {"cell_type": "markdown", "source": ["# Lesson\n", "\n", "text"]},
            {"cell_type": "markdown", "source": [f"## {title}"]},
            {"cell_type": "code", "source": ["lr = 0.1\n", code]},
        ]
        (tmp_path / name).write_text(json.dumps({"cells": cells}), encoding="utf-8")

    write("lesson.ipynb", "SGD", "steps = 3")
    write("lesson_zh.ipynb", "优化器", "steps = 3")
    assert check(tmp_path)[1] == []
    write("lesson_zh.ipynb", "优化器", "steps = 4")
    places = "lesson.ipynb: cell {0} and lesson_zh.ipynb: cell {0}"
    assert check(tmp_path)[1] == [
        f"{places.format(3)}: line 2 of the code blocks: `steps = 3` and `steps = 4`"
    ]
    write("lesson_zh.ipynb", "`SGD`", "steps = 3")
    assert check(tmp_path)[1] == [
        f"{places.format(2)}: inline code: only in the first nothing, only in the second `SGD`"
    ]


def test_command_prints_the_counts_and_fails_on_a_difference(toy):
    good = toy.course("pages")
    assert good.status == 0, good.text
    assert "0 differences" in good.out
    assert "code blocks" in good.out
    page = toy.tests.parent / "README_zh.md"
    page.write_text(page.read_text(encoding="utf-8") + "\n一段只有中文的话。\n", encoding="utf-8")
    bad = toy.course("pages")
    assert bad.status == 1
    assert "0 and 1 paragraphs" in bad.err
    assert "1 处差异" in toy.course("pages", "--lang", "zh").out
