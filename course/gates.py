"""`course gates`: prove that the tests are good. The table has a row for each lesson.

1. every test passes on the solutions;
2. every test fails on the empty skeleton, by reaching an unwritten task;
3. every known mistake is caught by the tests that its entry names, on an assertion (or the error that it names),
   and these see what its fingerprint says (testcases/mistakes/fingerprints/);
4. every accepted variant passes every test;
5. the solutions agree with torch and `training/` on the same work (testcases/agreement/).
"""

import contextlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from course.build import lesson_tests, skeletons
from course.fingerprints import case, read_bank, sights
from course.lang import current
from course.mistakes import Catalogue, Entry, read_catalogue, write_patched
from course.outcomes import FAILED, PASSED, SKIPPED, TIMEOUT, TODO
from course.registry import ROOT, SOLUTIONS, Exam, Lesson, exam, lessons
from course.trials import Trial, TrialResult, run_trials

AGREEMENT = ROOT / "testcases" / "agreement"
_SECOND_SEED = 7  # gate 1 runs on another seed too: a test must not depend on lucky numbers


@dataclass
class Row:
    """What the gates found for one lesson."""

    lesson: Lesson
    tests: int = 0
    passing: set[str] | None = None  # tests that pass on the solution, on every seed
    todo: int = 0  # tests that fail on the skeleton by reaching a task
    mistakes: int = 0
    caught: int = 0
    recorded: int = 0  # mistakes that show what their fingerprints say
    variants: set[str] = field(default_factory=set)
    rejected: set[str] = field(default_factory=set)
    agree: int = 0
    agreements: int = 0
    holes: list[str] = field(default_factory=list)

    def cells(self) -> list[str]:
        return [
            self.lesson.name,
            str(self.tests),
            str(len(self.lesson.tasks)),
            f"{len(self.passing or ())}/{self.tests}",
            f"{self.todo}/{self.tests}",
            *(
                ["", "", "", ""]  # the exam has no catalogue: the lessons' mistakes are caught in the lessons
                if isinstance(self.lesson, Exam)
                else [
                    f"{self.caught}/{self.mistakes}",
                    f"{self.recorded}/{self.mistakes}",
                    f"{len(self.variants - self.rejected)}/{len(self.variants)}",
                    f"{self.agree}/{self.agreements}",
                ]
            ),
        ]


HEADERS = [
    "lesson",
    "tests",
    "tasks",
    "pass on solution",
    "TODO on skeleton",
    "mistakes caught",
    "as fingerprinted",
    "variants accepted",
    "agree with torch, training",
]
HEADERS_ZH = [
    "课程",
    "测试",
    "任务",
    "答案通过",
    "骨架 TODO",
    "抓到的错误",
    "与指纹一致",
    "接受的变体",
    "与 torch、training 一致",
]


def run_gates(chosen: list[Lesson], jobs: int | None, on_result: Callable[[], None]) -> list[Row]:
    """Run every gate for the chosen lessons; `on_result` is called after each of `count_trials` runs."""
    final = exam() if len(chosen) == len(lessons()) else None
    judged = [*chosen, *([final] if final is not None else [])]
    rows = {lesson.name: Row(lesson, tests=len(lesson_tests(lesson))) for lesson in judged}
    catalogues = {lesson.name: read_catalogue(lesson) for lesson in chosen}
    entries: dict[str, Entry] = {}
    with tempfile.TemporaryDirectory(prefix="course-gates-") as scratch:
        trials = []
        for lesson in chosen:
            trials += _trials(lesson, catalogues[lesson.name], Path(scratch), entries)
        if final is not None:
            trials += _code_trials(final, chosen, Path(scratch))
        for result in run_trials(trials, jobs):
            _judge(rows[result.trial.lesson.name], result, entries)
            on_result()
    proper = [rows[lesson.name] for lesson in chosen]
    for row in proper:
        _check_counts(row)
    _agreement(proper)
    return list(rows.values())


def count_trials(chosen: list[Lesson]) -> int:
    """How many runs `run_gates` makes, for a progress bar."""
    catalogues = [read_catalogue(lesson) for lesson in chosen]
    with_exam = 3 if exam() is not None and len(chosen) == len(lessons()) else 0
    return with_exam + sum(3 + len(c.mistakes) + len(c.variants) for c in catalogues)


def _code_trials(tested: Lesson, needed: list[Lesson], scratch: Path) -> list[Trial]:
    """Gates 1 and 2: the tests of a lesson (or the exam) on the solutions, and on the skeletons of `needed`."""
    empty = scratch / f"{tested.name}-empty"
    for lesson in needed:
        for skeleton in skeletons(lesson):
            path = empty / lesson.stage / lesson.name / skeleton.path.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(skeleton.text, encoding="utf-8")
    return [
        Trial("solution", tested, SOLUTIONS),
        Trial("solution", tested, SOLUTIONS, seed=_SECOND_SEED),
        Trial("skeleton", tested, empty),
    ]


def _trials(lesson: Lesson, catalogue: Catalogue, scratch: Path, entries: dict[str, Entry]) -> list[Trial]:
    trials = _code_trials(lesson, [lesson], scratch)
    for kind, group in (("mistake", catalogue.mistakes), ("variant", catalogue.variants)):
        for entry in group:
            target = scratch / f"{lesson.name}-{entry.id}"
            write_patched(lesson, entry, target)
            key = f"{kind}:{entry.id}"
            entries[f"{lesson.name}:{key}"] = entry
            if kind == "mistake":  # it is enough to run the tests that should catch it
                trials.append(Trial(key, lesson, target, tests=frozenset(entry.caught_by)))
            else:
                trials.append(Trial(key, lesson, target))
    return trials


def _judge(row: Row, result: TrialResult, entries: dict[str, Entry]) -> None:
    """Enter one finished run into its row."""
    key = result.trial.key
    kind = key.partition(":")[0]
    if not result.outcomes:
        row.holes.append(f"{key}: no test ran: {result.output.strip()[-300:]}")
        return
    ok = {o.function for o in result.outcomes} - result.failed_functions(FAILED, TODO, TIMEOUT)
    if kind == "solution":
        _require_all_pass(row, result, "solution")
        row.passing = ok if row.passing is None else row.passing & ok
    elif kind == "skeleton":
        bad = [o for o in result.outcomes if o.outcome not in (TODO, SKIPPED)]
        row.holes += [f"skeleton: {o.test} is {o.outcome}: {_last_line(o.message)}" for o in bad]
        row.todo = len({o.function for o in result.outcomes if o.outcome == TODO} - {o.function for o in bad})
    elif kind == "mistake":
        row.mistakes += 1
        entry = entries[f"{row.lesson.name}:{key}"]
        problems = _mistake_problems(entry, result)
        row.caught += not problems
        strange = _strange_sights(row.lesson, entry, result)
        row.recorded += not strange
        row.holes += problems + strange
    else:
        before = len(row.holes)
        _require_all_pass(row, result, key)
        row.variants.add(key)
        if len(row.holes) > before:
            row.rejected.add(key)


def _require_all_pass(row: Row, result: TrialResult, what: str) -> None:
    seed = "" if result.trial.seed is None else f" (seed {result.trial.seed})"
    for o in result.outcomes:
        if o.outcome not in (PASSED, SKIPPED):
            row.holes.append(f"{what}{seed}: {o.test} is {o.outcome}: {_last_line(o.message)}")


def _mistake_problems(entry: Entry, result: TrialResult) -> list[str]:
    """Why the mistake does not count as caught."""
    problems = []
    allowed = {entry.raises} if entry.raises else {"Mismatch", "AssertionError", "TimeLimitExceeded"}
    for name in entry.caught_by:
        failed = [o for o in result.outcomes if o.function == name and o.outcome in (FAILED, TIMEOUT)]
        if not failed:
            problems.append(f"mistake {entry.id}: {name} does not catch it")
        elif not any(o.raised in allowed for o in failed):
            found = ", ".join(sorted({o.raised for o in failed}))
            wanted = " or ".join(sorted(allowed))
            problems.append(
                f"mistake {entry.id}: {name} ends with {found}, not with {wanted}: {_last_line(failed[0].message)}"
            )
    return problems


def _strange_sights(lesson: Lesson, entry: Entry, result: TrialResult) -> list[str]:
    """Tests that saw something else than the mistake's fingerprint says."""
    bank = read_bank(lesson)
    if bank is None or entry.id not in bank.fails:
        return [f"mistake {entry.id} has no fingerprint: run `course build`"]
    recorded, now = bank.fails[entry.id], sights(result.outcomes)
    ran = {case(o) for o in result.outcomes}
    return [
        f"mistake {entry.id}: {test} does not see what the fingerprint says: run `course build`"
        for test in sorted(now.keys() | (recorded.keys() & ran))
        if test not in now or test not in recorded or not (entry.varies or now[test].same(recorded[test]))
    ]


def _last_line(message: list) -> str:
    return " | ".join(f"{label} {text}" for label, text in message[1:5])[:400]


def _check_counts(row: Row) -> None:
    """The floors: enough tests, mistakes and variants."""
    for what, have, floor in (
        ("mistakes", row.mistakes, 8),
        ("variants", len(row.variants), 3),
        ("tests", row.tests, 16),
    ):
        if have < floor:
            row.holes.append(f"{have} {what}, at least {floor} are wanted")


class _Agreement:
    """Collects the outcomes of the agreement tests by the lesson in their name."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.failed or report.skipped:
            self.outcomes[report.nodeid.partition("::")[2]] = report.outcome


def _agreement(rows: list[Row]) -> None:
    """Gate 5: run the agreement tests of the chosen lessons."""
    wanted = " or ".join(f"test_lesson{row.lesson.number}_" for row in rows)
    collected = _Agreement()
    arguments = [str(AGREEMENT), "-q", "-p", "no:cacheprovider", "--no-header", "--no-summary", "-k", wanted]
    with tempfile.TemporaryFile("w+") as log, contextlib.redirect_stdout(log):
        pytest.main(["--rootdir", str(ROOT), *arguments], plugins=[collected])
    for row in rows:
        mine = {name: o for name, o in collected.outcomes.items() if f"lesson{row.lesson.number}_" in name}
        row.agreements, row.agree = len(mine), sum(o == "passed" for o in mine.values())
        if not mine:
            row.holes.append(f"no test_lesson{row.lesson.number}_… in {AGREEMENT.relative_to(ROOT)}")
        row.holes += [f"agreement: {name} {outcome}" for name, outcome in mine.items() if outcome != "passed"]


def headers() -> list[str]:
    """The table's headings in the language in force."""
    return HEADERS_ZH if current() == "zh" else HEADERS
