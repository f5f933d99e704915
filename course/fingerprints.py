"""Fingerprints: what every known mistake makes the tests see. Made by `course build`, one JSON file a lesson.

The fingerprint of an implementation is its difference from the solution: for each test case that fails, the
comparisons that failed (name, step, value, distance from what was wanted) or the exception. Where a test passes,
nothing is kept. Values are rounded, and compared with a tolerance (`alike`).

`testcases/mistakes/fingerprints/<lesson>.json` has a line for each failing test case. A mistake is run again only
when its digest changes: the solution, the tests, its patch, or the code that records.
"""

import ast
import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from course.errors import CourseError
from course.mistakes import Entry, read_catalogue, write_patched
from course.outcomes import FAILED, PASSED, TIMEOUT, TestOutcome
from course.progress import write_text
from course.registry import MISTAKES, ROOT, Lesson

FOLDER = MISTAKES / "fingerprints"
RTOL = 1e-4  # of a number, between machines; a wrong formula is further off, see `alike`
_EPS = {"bfloat16": 2**-7, "float16": 2**-10, "float32": 2**-23}  # relative spacing of the numbers of a dtype
_FORMAT = "1"  # of the fingerprints: another number makes all of them old
_RECORDING = ("expect.py", "recorder.py")  # what decides what a test sees


@dataclass(frozen=True)
class Sight:
    """How one test case failed. `raised` is "Mismatch" for a comparison, else the type of the exception."""

    raised: str
    where: str  # the implementation's function that an exception came out of
    after: str  # what the test came to after its first failed comparison
    misses: list[list[Any]]  # name, step, brief value, distance: see course/recorder.py

    @classmethod
    def of(cls, outcome: TestOutcome) -> "Sight":
        return cls(outcome.raised, outcome.crashed_in, outcome.after, outcome.misses)

    def same(self, other: "Sight") -> bool:
        """Whether both failed in the same way. A test that an unwritten task cut short may have seen less."""
        mine, theirs = self.misses, other.misses
        if "todo" in (self.after, other.after):
            shorter = min(len(mine), len(theirs))
            return shorter > 0 and all(map(_same_miss, mine[:shorter], theirs[:shorter]))
        ends = (self.raised, self.where, self.after) == (other.raised, other.where, other.after)
        return ends and len(mine) == len(theirs) and all(map(_same_miss, mine, theirs))


Fails = dict[str, Sight]  # test case → how it failed


@dataclass
class Bank:
    """The fingerprints of a lesson: the test cases that were run, and for each mistake those that failed."""

    tests: list[str]
    tests_digest: str
    fails: dict[str, Fails]
    digests: dict[str, str]


def case(outcome: TestOutcome) -> str:
    """The name of a test case in the bank."""
    return f"{outcome.file}::{outcome.test}"


def sights(outcomes: Iterable[TestOutcome]) -> Fails:
    """The fingerprint of a run."""
    return {case(o): Sight.of(o) for o in outcomes if o.outcome in (FAILED, TIMEOUT)}


def _same_miss(one: list[Any], other: list[Any]) -> bool:
    """The same comparison, a value and a distance that are alike.

    A distance of many units in the last place may be one or two of them off on another processor. A distance of a
    few units is a matter of rounding alone: nothing else tells such mistakes apart, so there it has to be the same.
    """
    if not alike(one[:3], other[:3]):
        return False
    if not (_is_float(one[3]) and _is_float(other[3])):
        return alike(one[3], other[3])
    unit = _unit(one[2])
    slack = 2 * unit if abs(one[3]) > 64 * unit else 0.0
    return abs(one[3] - other[3]) <= RTOL * abs(one[3]) + slack


def _unit(value: Any) -> float:
    """The unit in the last place of the largest number of a brief value."""
    numbers = [abs(x) for x in (value if isinstance(value, list) else [value]) if _is_float(x)]
    kind = value[0].partition("[")[0] if isinstance(value, list) and value else ""
    return _EPS.get(kind, 2**-52) * max(numbers, default=0.0)


def alike(one: Any, other: Any) -> bool:
    """The same structure, words and whole numbers; floats within 1e-4 of each other.

    Beside a large number a small one counts for less: the sum of a tensor may be all cancellation.
    """
    if isinstance(one, list) and isinstance(other, list):
        if len(one) != len(other):
            return False
        scale = max([abs(x) for x in one + other if _is_float(x)], default=0.0)
        return all(
            abs(a - b) <= RTOL * max(abs(a), abs(b)) + 1e-2 * RTOL * scale
            if _is_float(a) and _is_float(b)
            else alike(a, b)
            for a, b in zip(one, other, strict=True)
        )
    if _is_float(one) and _is_float(other):
        return math.isclose(one, other, rel_tol=RTOL)
    return type(one) is type(other) and bool(one == other)


def _is_float(value: Any) -> bool:
    return isinstance(value, float)


# -------------------------------------------------------------------------------------------------- on disk


def path_of(lesson: Lesson) -> Path:
    return FOLDER / f"{lesson.name}.json"


def read_bank(lesson: Lesson) -> Bank | None:
    """The lesson's fingerprints, None where there are none.

    Raises:
        CourseError: the file is not what `write_bank` writes.
    """
    path = path_of(lesson)
    return _parse_bank(path, path.read_text(encoding="utf-8")) if path.is_file() else None


@cache
def _parse_bank(path: Path, text: str) -> Bank:
    try:
        table = json.loads(text)
        entries = table["mistakes"]
        fails = {
            name: {test: Sight(*row) for test, row in entry["fails"].items()}
            for name, entry in entries.items()
        }
        digests = {name: entry["digest"] for name, entry in entries.items()}
        return Bank(table["tests"], table["tests_digest"], fails, digests)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CourseError(f"{path.relative_to(ROOT)} is damaged ({error}): run `course build`") from error


def write_bank(lesson: Lesson, bank: Bank) -> None:
    """Write the lesson's file: sorted, one line a test case, so that a change reads as one."""

    def line(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))

    def block(rows: list[str], indent: str) -> str:
        return f",\n{indent}".join(rows)

    mistakes = []
    for name in sorted(bank.fails):
        rows = [
            f"{line(test)}: {line([s.raised, s.where, s.after, s.misses])}"
            for test, s in sorted(bank.fails[name].items())
        ]
        digest = line(bank.digests[name])
        mistakes.append(f'{line(name)}: {{"digest": {digest}, "fails": {{\n  {block(rows, "  ")}}}}}')
    text = (
        f'{{"tests_digest": {line(bank.tests_digest)},\n"tests": [\n  {block([line(t) for t in bank.tests], "  ")}],\n'
        f'"mistakes": {{\n {block(mistakes, " ")}}}}}\n'
    )
    path_of(lesson).parent.mkdir(parents=True, exist_ok=True)
    write_text(path_of(lesson), text)


# -------------------------------------------------------------------------------------------------- digests


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


@cache
def _meaning(path: Path) -> str:
    """A Python file without comments and layout."""
    return ast.dump(ast.parse(path.read_text(encoding="utf-8"), filename=str(path)))


def tests_digest(lesson: Lesson) -> str:
    """A digest of what the lesson's tests say, comments aside."""
    return _digest(_meaning(path) for path in lesson.test_files())


def digests(lesson: Lesson, entries: list[Entry]) -> dict[str, str]:
    """For each mistake a digest of everything that its fingerprint comes from."""
    here = Path(__file__).parent
    sources = [*lesson.solution_files(), *lesson.test_files(), *(here / name for name in _RECORDING)]
    common = [_meaning(path) for path in sources]
    return {
        entry.id: _digest(
            [_FORMAT, *common, *(text for p in entry.patches for text in (p.file, p.old, p.new))]
        )
        for entry in entries
    }


def stale(lesson: Lesson) -> tuple[list[Entry], list[str]]:
    """(mistakes whose fingerprint is missing or old, fingerprints without a mistake)."""
    mistakes, bank = read_catalogue(lesson).mistakes, read_bank(lesson)
    if bank is None or bank.tests_digest != tests_digest(lesson):
        return mistakes, []
    wanted = digests(lesson, mistakes)
    old = [entry for entry in mistakes if bank.digests.get(entry.id) != wanted[entry.id]]
    return old, sorted(set(bank.digests) - set(wanted))


# --------------------------------------------------------------------------------------------------- making


def update(lesson: Lesson, jobs: int | None, on_result: Callable[[], None]) -> list[str]:
    """Run what is stale, and write the lesson's file. Returns the ids of the mistakes that were run.

    Raises:
        CourseError: a run that did not come to its end.
    """
    old, gone = stale(lesson)
    if not old and not gone:
        return []
    before = read_bank(lesson)
    mistakes = read_catalogue(lesson).mistakes
    bank = Bank([], tests_digest(lesson), {}, digests(lesson, mistakes))
    kept = {entry.id for entry in mistakes} - {entry.id for entry in old}
    if before is not None:
        bank.tests = before.tests
        bank.fails = {name: fails for name, fails in before.fails.items() if name in kept}
    for name, outcomes in observe(lesson, old, jobs):
        bank.fails[name] = sights(outcomes)  # none at all is a hole in the tests, which the gates report
        bank.tests = [case(o) for o in outcomes if o.outcome in (PASSED, FAILED, TIMEOUT)]
        on_result()
    write_bank(lesson, bank)
    return [entry.id for entry in old]


def observe(
    lesson: Lesson, entries: list[Entry], jobs: int | None = None
) -> Iterable[tuple[str, list[TestOutcome]]]:
    """Run all tests of the lesson on each entry, in a fresh process each; yields (id, outcomes)."""
    from course.trials import Trial, run_trials

    with tempfile.TemporaryDirectory(prefix="course-fingerprints-") as scratch:
        trials = []
        for entry in entries:
            write_patched(lesson, entry, Path(scratch) / entry.id)
            trials.append(Trial(entry.id, lesson, Path(scratch) / entry.id))
        for result in run_trials(trials, jobs):
            if not result.outcomes:
                output = result.output.strip()[-300:]
                raise CourseError(f"{lesson.name}: {result.trial.key}: no test ran: {output}")
            yield result.trial.key, result.outcomes
