"""Checks of a lesson's pages: both languages have the same bones, and each names every task and its tests."""

import re
from pathlib import Path

from course.registry import ROOT, Lesson

HEADINGS = (
    ("What you will be able to do", "学完能做什么"),
    ("Run it", "先跑起来"),
    ("The idea", "核心想法"),
    ("Dataflow of one step", "一步之内的数据流"),
    ("Tasks", "任务"),
    ("Common mistakes", "常见错误"),
    ("Where it lives in `training/`", "在 `training/` 里的位置"),
    ("Sources", "参考资料"),
)


def check(lesson: Lesson) -> list[str]:
    """Everything in which README.md and README_zh.md fall short, one sentence each."""
    problems = []
    texts = []
    for language, file in enumerate(("README.md", "README_zh.md")):
        path = lesson.folder / file
        name = path.relative_to(ROOT)
        if not path.is_file():
            return [f"{name} is missing"]
        text = path.read_text(encoding="utf-8")
        texts.append(text)
        wanted = [pair[language] for pair in HEADINGS]
        found = _headings(text, 2)
        if found != wanted:
            problems.append(f"{name}: the second-level headings must be {wanted}, got {found}")
        tasks = _section(text, wanted[4])
        problems += [
            f"{name}: task {t.id} is not in the task table" for t in lesson.tasks if f"{t.id}" not in tasks
        ]
        problems += _check_links(path, text)
    problems += _compare(lesson, *texts)
    return problems


def _compare(lesson: Lesson, english: str, chinese: str) -> list[str]:
    """The two languages have the same code blocks, figures and numbers of tables and sub-headings."""
    where = f"tutorial/{lesson.path}/README.md and README_zh.md"
    problems = []
    for what, first, second in (
        ("code blocks", code_blocks(english), code_blocks(chinese)),
        ("figures", _figures(english), _figures(chinese)),
        ("table rows", _table_rows(english), _table_rows(chinese)),
        ("third-level headings", len(_headings(english, 3)), len(_headings(chinese, 3))),
    ):
        if first != second:
            problems.append(f"{where} differ in their {what}")
    return problems


def code_blocks(text: str) -> list[tuple[str, str]]:
    """(language, text) of every fenced block; in diagrams (`text`, `mermaid`) only the language counts, since
    the words in them are translated."""
    blocks = re.findall(r"^```(\w*)[^\n]*\n(.*?)^```\s*$", text, re.MULTILINE | re.DOTALL)
    return [(language, "" if language in ("", "text", "mermaid") else body) for language, body in blocks]


def console_blocks(text: str) -> list[tuple[str, str]]:
    """(command, expected output) of every ```console block that begins with `$ command`."""
    found = []
    for language, body in code_blocks(text):
        if language == "console" and body.startswith("$ "):
            command, _, output = body[2:].partition("\n")
            found.append((command.strip(), output))
    return found


def _without_code(text: str) -> str:
    return re.sub(r"^```.*?^```\s*$", "", text, flags=re.MULTILINE | re.DOTALL)


def _headings(text: str, level: int) -> list[str]:
    return re.findall(rf"^{'#' * level} (.+?)\s*$", _without_code(text), re.MULTILINE)


def _section(text: str, heading: str) -> str:
    match = re.search(rf"^## {re.escape(heading)}\s*$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return match[1] if match else ""


def _figures(text: str) -> list[str]:
    return re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)


def _table_rows(text: str) -> int:
    return len(re.findall(r"^\|.*\|\s*$", _without_code(text), re.MULTILINE))


def _check_links(path: Path, text: str) -> list[str]:
    """Links to files of the repository lead somewhere."""
    problems = []
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", _without_code(text)):
        if "://" not in target and not (path.parent / target).exists():
            problems.append(f"{path.relative_to(ROOT)}: the link to {target} leads nowhere")
    return problems
