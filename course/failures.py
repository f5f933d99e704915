"""From an exception to the lines that a student reads: what was compared, or where the own code broke.

No traceback through the harness: only frames of the implementation under test and the line of the test.
"""

import linecache
import re
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from course.lang import tr
from course.outcomes import TIMEOUT, TODO, TestOutcome

if TYPE_CHECKING:
    import pytest

_TASK = re.compile(r"task (\d+\.\d+): ")


class TimeLimitExceeded(BaseException):
    """A test took longer than its limit. Not an Exception, so that `except Exception` cannot swallow it."""


def explain(outcome: TestOutcome, error: BaseException, item: "pytest.Item", root: Path) -> None:
    """Fill in `outcome` from the exception that ended the test."""
    todo = _unwritten_task(error)
    if todo is not None:
        outcome.outcome = TODO
        outcome.todo_task, outcome.todo_file, outcome.todo_line = todo
        outcome.raised = "NotImplementedError"
        return
    own = _own_frames(error, root)
    rows = [(tr("setup", "场景"), outcome.setup)] if outcome.setup else []
    if isinstance(error, TimeLimitExceeded):
        outcome.outcome = TIMEOUT
        text = tr(
            f"more than {error.args[0]:g} s: a loop without an end?",
            f"超过 {error.args[0]:g} 秒：是不是有死循环？",
        )
        rows += [(tr("time limit", "超时"), text), *own]
    elif hasattr(error, "lines"):  # course.expect.Mismatch, not imported here because it imports torch
        rows += error.lines()
        if error.__cause__ is not None:
            rows += _own_frames(error.__cause__, root)
    elif isinstance(error, AssertionError) and not own:
        rows.append((tr("failed", "失败"), str(error)))
    else:
        rows += [(tr("raised", "抛出"), f"{type(error).__name__}: {error}"), *own]
    # A comparison has said it all; an error in the test's own line needs that line.
    rows.append((tr("test", "测试"), _test_line(error, item, with_text=not hasattr(error, "lines"))))
    outcome.raised = type(error).__name__
    outcome.crashed_in = "" if hasattr(error, "lines") else _innermost(error, root)
    outcome.message = rows


def kind_of(error: BaseException) -> str:
    """ "todo" for an unwritten task, else the type of the exception."""
    return TODO if _unwritten_task(error) else type(error).__name__


def render(outcome: TestOutcome) -> str:
    """The message as aligned text."""
    if outcome.outcome == TODO:
        return f"TODO {outcome.todo_task} {outcome.todo_file}:{outcome.todo_line}"
    column = max(width(label) for label, _ in outcome.message)
    lines = []
    for label, text in outcome.message:
        pad = " " * (column - width(label))
        indented = text.replace("\n", "\n" + " " * (column + 4))
        lines.append(f"  {label}{pad}  {indented}")
    return "\n".join(lines)


def _unwritten_task(error: BaseException | None) -> tuple[str, str, int] | None:
    """(task, file, line) of a skeleton's NotImplementedError in the chain of `error`, or None."""
    seen = 0
    while error is not None and seen < 10:
        match = _TASK.match(str(error)) if isinstance(error, NotImplementedError) else None
        if match:
            file, number, _ = _frames(error)[-1]
            return match[1], Path(file).name, number
        error, seen = error.__cause__ or error.__context__, seen + 1
    return None


def _frames(error: BaseException) -> list[tuple[str, int, str]]:
    """(file, line number, function), outermost first; `traceback.extract_tb` reads each line and column too."""
    frames = traceback.walk_tb(error.__traceback__)
    return [(frame.f_code.co_filename, number, frame.f_code.co_name) for frame, number in frames]


def _own_frames(error: BaseException, root: Path) -> list[tuple[str, str]]:
    """Where the implementation's own code was, outermost first; for a SyntaxError, the line that it names."""
    label = tr("your code", "你的代码")
    if isinstance(error, SyntaxError) and error.filename:
        return [(label, f"{Path(error.filename).name}:{error.lineno}    {(error.text or '').strip()}")]
    rows = []
    for file, number, name in _frames(error):
        if _is_own(file, root):
            linecache.checkcache(file)
            line = linecache.getline(file, number).strip()
            rows.append((label, f"{Path(file).name}:{number} in {name}    {line}"))
            label = ""
    return rows[-4:] if len(rows) <= 4 else [(tr("your code", "你的代码"), "…"), *rows[-3:]]


def _is_own(file: str, root: Path) -> bool:
    """Whether the file belongs to the implementation, and is not one of the tests that lie beside it."""
    if not file.startswith(str(root)):  # most frames are torch's and pytest's, and paths are slow
        return False
    return Path(file).is_relative_to(root) and "testcases" not in Path(file).relative_to(root).parts


def _innermost(error: BaseException, root: Path) -> str:
    """The implementation's function that the exception came out of, "" where it has no part in it."""
    names = [name for file, _, name in _frames(error) if _is_own(file, root)]
    return next((name for name in reversed(names) if name.isidentifier()), "")


def _test_line(error: BaseException, item: "pytest.Item", with_text: bool) -> str:
    """file:line (and text) of the deepest line in the test file that the exception passed through."""
    lines = [number for file, number, _ in _frames(error) if file == str(item.path)]
    number = (lines[-1] if lines else None) or item.reportinfo()[1] or 1
    text = "    " + linecache.getline(str(item.path), number).strip() if with_text else ""
    return f"{item.path.parent.name}/{item.path.name}:{number} in {item.name}{text}"


def width(text: str) -> int:
    """Columns on a terminal: a Chinese character takes two."""
    return sum(2 if ord(char) > 0x2E7F else 1 for char in text)
