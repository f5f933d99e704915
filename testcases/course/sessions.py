"""The sessions that docs/five_sessions.md shows: a mistake made in a student's file, and what pytest prints of it.

    python -m testcases.course.sessions         write the reports into the page, in both languages

Each is played in a copy of the course whose tutorial holds finished code, with the mistake in it. The test beside
this file plays them again and compares.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from course.mistakes import Entry, Patch, read_catalogue
from course.registry import ROOT, find_lesson
from course.skeleton import without_markers

PAGES = {"en": ROOT / "docs" / "five_sessions.md", "zh": ROOT / "docs" / "five_sessions_zh.md"}
_COPIED = (
    "course",
    "tutorial",
    "solutions",
    "training",
    "testcases/mistakes",
    "conftest.py",
    "pyproject.toml",
)
_BLOCK = re.compile(r"(?ms)^(<!-- session: (\S+) -->\n+```output\n)(.*?)(^```$)")


@dataclass(frozen=True)
class Session:
    """Mistakes of the catalogue (or one of its own, as a patch), made in one lesson."""

    name: str
    lesson: str
    mistakes: tuple[str, ...] = ()
    own: tuple[str, str, str] | None = None  # file, right, wrong


SESSIONS = [
    Session("decay", "02", ("adamw-l2-in-gradient",)),
    Session("means", "06", ("accumulate-mean-of-means",)),
    Session("clip", "07", ("amp-clip-before-unscale",)),
    Session("epoch", "09", ("resume-order-of-every-epoch-the-same",)),
    Session("two", "01", ("decay-ignores-the-lr", "zero-first-group-only")),
    Session(
        "unknown",
        "02",
        own=("optimizer.py", "1 - beta1**step, 1 - beta2**step", "1 - beta1**step, 1 - beta2 ** (step + 1)"),
    ),
]


def prepare(root: Path) -> None:
    """Make the copy of the course that the sessions are played in."""
    ignore = shutil.ignore_patterns("__pycache__", "*.ipynb", "figures")
    for name in _COPIED:
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target, ignore=ignore)
        else:
            shutil.copy(ROOT / name, target)


def play(session: Session, lang: str, root: Path, pytest: Callable[[list[str]], str]) -> str:
    """Make the mistakes in the copy below `root`, run the basic tests there, and give what is printed, shortened."""
    lesson = find_lesson(session.lesson)
    folder = Path("tutorial") / lesson.path
    for path in lesson.solution_files():
        text = path.read_text(encoding="utf-8")
        for patch in _patches(session):
            if patch.file == path.name:
                if text.count(patch.old) != 1:
                    raise ValueError(
                        f"{session.name}: {patch.old!r} is {text.count(patch.old)} times in {path}"
                    )
                text = text.replace(patch.old, patch.new)
        (root / folder / path.name).write_text(without_markers(text), encoding="utf-8")
    return _shortened(pytest([str(folder / "testcases" / "basic_test.py"), "--lang", lang]), folder)


def _patches(session: Session) -> tuple[Patch, ...]:
    if session.own:
        return (Patch(*session.own),)
    entries: dict[str, Entry] = {e.id: e for e in read_catalogue(find_lesson(session.lesson)).mistakes}
    return tuple(patch for name in session.mistakes for patch in entries[name].patches)


def _shortened(printed: str, folder: Path) -> str:
    """The command, the first failed test and the summary; pytest's own frame, which tells the time, is left out."""
    lines = [line.rstrip() for line in printed.splitlines()]
    heads = [n for n, line in enumerate(lines) if re.match(r"_{3,} .* _{3,}$", line)]
    ends = [n for n, line in enumerate(lines) if re.match(r"={3,} .* ={3,}$", line)]
    if not heads or len(ends) < 2:
        raise ValueError(f"no failed test and no summary in:\n{printed}")
    first_end = heads[1] if len(heads) > 1 else next(n for n in ends if n > heads[0])
    more = ["…"] if len(heads) > 1 else []
    command = f"$ pytest {folder / 'testcases' / 'basic_test.py'}"
    return "\n".join([command, "…", *lines[heads[0] : first_end], *more, *lines[ends[-2] : ends[-1]]]) + "\n"


def blocks(page: str) -> dict[str, str]:
    """session → the report that the page shows."""
    return {match[2]: match[3] for match in _BLOCK.finditer(page)}


def _in_a_fresh_process(root: Path) -> Callable[[list[str]], str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("COURSE_", "PYTEST_", "LC_"))}
    environment |= {"PYTHONPATH": str(root), "LANG": "C.UTF-8", "COLUMNS": "120"}

    def run(arguments: list[str]) -> str:
        command = [sys.executable, "-m", "pytest", *arguments]
        return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True).stdout

    return run


def main() -> None:
    """Play all sessions, and write their reports into the pages."""
    with tempfile.TemporaryDirectory(prefix="course-sessions-") as scratch:
        root = Path(scratch)
        prepare(root)
        for lang, path in PAGES.items():
            page = path.read_text(encoding="utf-8")
            if missing := {s.name for s in SESSIONS} ^ set(blocks(page)):
                raise SystemExit(f"{path.name}: blocks and sessions differ: {', '.join(sorted(missing))}")
            reports = {s.name: play(s, lang, root, _in_a_fresh_process(root)) for s in SESSIONS}
            page = _BLOCK.sub(lambda m: m[1] + reports[m[2]] + m[4], page)  # noqa: B023
            path.write_text(page, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}: {len(reports)} reports")


if __name__ == "__main__":
    main()
