"""The map of the course: a box for each lesson, from the folders below tutorial/. Used by make_figures.py."""

import re
import tomllib
from itertools import groupby

from course.failures import width
from course.registry import ROOT, Lesson, exam, lessons
from docs.figures.svg import Card

FILLS = ("blue-box", "green-box", "red-box")
COLORS = ("blue", "green", "red")
COLUMNS, BOX, HEIGHT, GAP, MARGIN = 4, 176, 92, 12, 16
LINE = 22  # columns of a terminal that fit into a box; a Chinese character takes two


def draw(language: str) -> str:
    """The picture as SVG; `language` is "en" or "zh"."""
    stages = [(name, list(found)) for name, found in groupby(lessons(), key=lambda lesson: lesson.stage)]
    rows = sum(-(-len(found) // COLUMNS) for _, found in stages)
    height = MARGIN + len(stages) * 30 + rows * (HEIGHT + GAP) + 2 * (56 + GAP) + 8
    words = "课程地图" if language == "zh" else "The map of the course"
    card = Card(2 * MARGIN + COLUMNS * BOX + (COLUMNS - 1) * GAP, height, words)
    y = MARGIN
    for index, (stage, found) in enumerate(stages):
        card.text(MARGIN, y + 17, _stage_title(stage, language), COLORS[index % 3], 15, 'font-weight="600"')
        y += 30
        for place, lesson in enumerate(found):
            x = MARGIN + place % COLUMNS * (BOX + GAP)
            _lesson(card, lesson, language, x, y + place // COLUMNS * (HEIGHT + GAP), index % 3)
        y += -(-len(found) // COLUMNS) * (HEIGHT + GAP)
    _ends(card, language, y)
    return card.render()


def _stage_title(stage: str, language: str) -> str:
    """As the site's table of contents has it."""
    with (ROOT / "docs" / "contents.toml").open("rb") as file:
        parts = tomllib.load(file)["part"]
    part = next(
        part for part in parts if any(page.startswith(f"tutorial/{stage}/") for page in part["pages"])
    )
    return str(part["title_zh" if language == "zh" else "title"])


def _lesson(card: Card, lesson: Lesson, language: str, x: float, y: float, color: int) -> None:
    card.box(x, y, BOX, HEIGHT, FILLS[color])
    card.text(x + 12, y + 25, lesson.number, COLORS[color], 17, 'font-weight="700"')
    card.text(x + BOX - 12, y + 24, _tasks(lesson, language), "quiet", 12, 'text-anchor="end"')
    title = lesson.title_zh if language == "zh" else lesson.title_en
    for row, line in enumerate(_wrapped(title)):
        card.text(x + 12, y + 47 + 17 * row, line, "ink", 13)
    card.text(x + 12, y + HEIGHT - 10, _production(lesson), "quiet", 10, 'style="font-family:monospace"')


def _tasks(lesson: Lesson, language: str) -> str:
    return f"{len(lesson.tasks)} 个任务" if language == "zh" else f"{len(lesson.tasks)} tasks"


def _production(lesson: Lesson) -> str:
    """The file of training/ that the lesson's page names first."""
    page = (lesson.folder / "README.md").read_text(encoding="utf-8")
    section = page.split("## Where it lives", 1)[-1]
    found = re.search(r"training/\w+\.py", section)
    return f"→ {found[0]}" if found else ""


def _wrapped(title: str) -> list[str]:
    """Two lines at most: at a space, or between Chinese characters."""
    pieces = re.findall(r"[^\x00-\x7f] ?|[\x21-\x7e]+ ?", title)
    lines = [""]
    for piece in pieces:
        if lines[-1] and width(lines[-1] + piece.rstrip()) > LINE and piece.strip() not in "、，。：":
            lines.append("")
        lines[-1] += piece
    return [line.strip() for line in lines[:2]]


def _ends(card: Card, language: str, y: float) -> None:
    """The exam, and training/ beside everything."""
    final = exam()
    across = card.width - 2 * MARGIN
    rows = []
    if final is not None:
        points = sum(task.points for task in final.tasks)
        rows.append(
            (
                f"考试 · {len(final.tasks)} 个任务，{points} 分",
                "把第 01–09 课你自己写的部件装在一起，杀掉、恢复、逐位比较",
            )
            if language == "zh"
            else (
                f"Exam · {len(final.tasks)} tasks, {points} points",
                "your own pieces of lessons 01–09 put together, killed, resumed, compared bit for bit",
            )
        )
    rows.append(
        ("training/", "同一套系统的生产版本，建立在 torch 自带的部件之上")
        if language == "zh"
        else ("training/", "the production version of the same system, on torch's own pieces")
    )
    for title, line in rows:
        card.box(MARGIN, y, across, 56, "card")
        card.text(MARGIN + 12, y + 23, title, "ink", 15, 'font-weight="600"')
        card.text(MARGIN + 12, y + 44, line, "quiet", 13)
        y += 56 + GAP
