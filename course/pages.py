"""Checks of a lesson's pages: the headings that every lesson has, all of its tasks, and two languages that agree.

What is compared between the languages is in course/drift.py.
"""

from course import drift
from course.drift import DIAGRAMS
from course.markdown import read_page, read_sections
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
    paths = [lesson.folder / file for file in ("README.md", "README_zh.md")]
    for language, path in enumerate(paths):
        name = path.relative_to(ROOT)
        if not path.is_file():
            return [f"{name} is missing"]
        sections = read_page(path).sections
        wanted = [pair[language] for pair in HEADINGS]
        found = [section.title for section in sections if section.level == 2]
        if found != wanted:
            problems.append(f"{name}: the second-level headings must be {wanted}, got {found}")
        tasks = next((s for s in sections if s.title == wanted[4]), sections[0])
        text = "\n".join(tasks.prose)
        problems += [
            f"{name}: task {t.id} is not in the task table" for t in lesson.tasks if t.id not in text
        ]
    return problems + drift.compare(paths[0], paths[1], ROOT)


def code_blocks(text: str) -> list[tuple[str, str]]:
    """(language, text) of every fenced block; in diagrams (`text`, `mermaid`) only the language counts, since
    the words in them are translated."""
    blocks = [block for section in read_sections(text) for block in section.blocks]
    return [
        (b.language, "" if b.language in DIAGRAMS else "".join(f"{x}\n" for x in b.lines)) for b in blocks
    ]


def console_blocks(text: str) -> list[tuple[str, str]]:
    """(command, expected output) of every ```console block that begins with `$ command`."""
    found = []
    for language, body in code_blocks(text):
        if language == "console" and body.startswith("$ "):
            command, _, output = body[2:].partition("\n")
            found.append((command.strip(), output))
    return found
