"""What became of each lesson test, and what that makes of tasks, lessons and points.

Outcomes: passed, failed (a comparison or an error), todo (reached an unwritten task), timeout, skipped.
A task is worth its points when every one of its tests passed (a skipped CUDA case neither helps nor harms).
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from course.registry import Lesson, Task

PASSED, FAILED, TODO, TIMEOUT, SKIPPED = "passed", "failed", "todo", "timeout", "skipped"

DEFAULT_SEED = (
    20240229  # of the tests' random inputs; the fingerprints of the known mistakes are made with it
)


@dataclass
class TestOutcome:
    """One test case of one lesson."""

    __test__ = False  # the name begins with "Test", but this is no test class

    nodeid: str
    lesson: str
    file: str  # basic_test or advanced_test
    test: str  # function name, with the parameters in brackets
    tasks: list[str]
    outcome: str
    seconds: float
    setup: str = ""
    raised: str = ""  # type of the exception that ended a failed test
    message: list[tuple[str, str]] = field(default_factory=list)  # (label, text) lines
    reason: str = ""  # why it was skipped
    todo_task: str = ""
    todo_file: str = ""
    todo_line: int = 0
    observations: list[dict[str, Any]] = field(default_factory=list)
    misses: list[list[Any]] = field(default_factory=list)  # failed comparisons and noted values: recorder.py
    after: str = ""  # what going on after the first of them came to: "", "todo", or an exception's type
    crashed_in: str = ""  # the implementation's function in which an exception began

    @property
    def function(self) -> str:
        return self.test.partition("[")[0]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class TaskResult:
    """A task and the outcomes of its tests."""

    task: Task
    outcomes: list[TestOutcome]

    def count(self, *kinds: str) -> int:
        return sum(o.outcome in kinds for o in self.outcomes)

    @property
    def state(self) -> str:
        """passed, todo, failed, or "" when none of its tests ran."""
        if self.count(FAILED, TIMEOUT):
            return FAILED
        if self.count(TODO):
            return TODO
        return PASSED if self.count(PASSED) else ""

    @property
    def points(self) -> int:
        return self.task.points if self.state == PASSED else 0

    @property
    def todo(self) -> TestOutcome | None:
        """A test that stopped at this very task, which tells its file and line."""
        return next((o for o in self.outcomes if o.todo_task == self.task.id), None)

    @property
    def waits_for(self) -> str:
        """Another task that has to be written first, "" where there is none."""
        waiting = [o.todo_task for o in self.outcomes if o.todo_task]
        return "" if self.todo or not waiting else waiting[0]


def by_task(lesson: Lesson, outcomes: Iterable[TestOutcome]) -> list[TaskResult]:
    """The lesson's tasks in order, each with its outcomes."""
    mine = [o for o in outcomes if o.lesson == lesson.name]
    return [TaskResult(task, [o for o in mine if task.id in o.tasks]) for task in lesson.tasks]


def points(results: Iterable[TaskResult]) -> int:
    return sum(result.points for result in results)
