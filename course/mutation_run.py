"""`course mistakes --mutants N --seed S`: what the tests and the diagnosis make of N random mutants a lesson.

A mutant is caught when a test fails on it. One that survives is a hole in the tests, unless a person has found that it
does what the solution does (testcases/mistakes/equivalent/). A name that the diagnosis gives to a mutant is wrong,
unless a person has found that the mutant is that mistake.

The mutants run with limits on memory and on the size of files, and in a folder of their own, whatever they do.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from course.diagnosis import diagnose
from course.equivalents import Known, read_known
from course.errors import CourseError
from course.fingerprints import stale
from course.lang import current, tr
from course.mutants import Mutant, draw, write_mutant
from course.outcomes import PASSED, SKIPPED, TIMEOUT
from course.registry import SOLUTIONS, Lesson
from course.trials import Trial, TrialResult, run_trials

EQUIVALENT, CAUGHT, SURVIVED, MISLISTED = (
    "equivalent",
    "caught",
    "survived",
    "listed as equivalent, but caught",
)
SEED = 20240229
CAUGHT_SHARE = 0.95  # of the mutants that change behaviour
_MAX_MEMORY = 4 << 30  # bytes that a mutant may allocate
_MAX_FILE = 64 << 20  # bytes that it may write into one file


@dataclass(frozen=True)
class Judged:
    """A mutant, and what came of it."""

    mutant: Mutant
    state: str
    failed: frozenset[str]  # the tests that caught it; none where the whole run came to no end
    only_slow: bool  # caught by nothing but a time limit, which a busy machine can exceed too
    names: tuple[tuple[str, ...], ...]  # of the diagnosis
    is_named_rightly: bool


@dataclass
class Tally:
    """The mutants of one lesson."""

    lesson: Lesson
    judged: list[Judged] = field(default_factory=list)

    def count(self, state: str) -> int:
        return sum(one.state == state for one in self.judged)

    @property
    def named_rightly(self) -> int:
        return sum(one.is_named_rightly for one in self.judged)

    @property
    def named_wrongly(self) -> int:
        return sum(bool(one.names) and not one.is_named_rightly for one in self.judged)


def measure(
    chosen: list[Lesson], count: int, seed: int, jobs: int | None, on_result: Callable[[], None]
) -> list[Tally]:
    """Make and run `count` mutants of each lesson.

    Raises:
        CourseError: the fingerprints are old, or a solution does not pass its tests here.
    """
    if old := [lesson.name for lesson in chosen if any(stale(lesson))]:
        raise CourseError(f"the fingerprints are old: {', '.join(old)}; run `course build` first")
    return [_measure(lesson, count, seed, jobs, on_result) for lesson in chosen]


def _measure(lesson: Lesson, count: int, seed: int, jobs: int | None, on_result: Callable[[], None]) -> Tally:
    known, tally = read_known(lesson), Tally(lesson)
    with tempfile.TemporaryDirectory(prefix="course-mutants-") as name:
        folder = Path(name)
        mutants = {str(n): mutant for n, mutant in enumerate(draw(lesson, count, seed))}
        for key, mutant in mutants.items():
            write_mutant(mutant, folder / key)
        trials = [Trial(key, lesson, folder / key) for key in mutants]
        with _confined(folder):
            for result in run_trials([Trial("solution", lesson, SOLUTIONS), *trials], jobs):
                if result.trial.key == "solution":
                    _require_sound(result)
                else:
                    tally.judged.append(_judge(known, mutants[result.trial.key], result))
                on_result()
    tally.judged.sort(key=lambda one: (one.mutant.file, one.mutant.line, one.mutant.id))
    return tally


@contextlib.contextmanager
def _confined(folder: Path) -> Iterator[None]:
    """Relative paths and temporary files go below `folder`; the children inherit the limits."""
    tempdir, environment = tempfile.tempdir, os.environ.get("TMPDIR")
    work = folder / "work"
    work.mkdir()
    tempfile.tempdir = os.environ["TMPDIR"] = str(work)
    try:
        with contextlib.chdir(work), _limited():
            yield
    finally:
        tempfile.tempdir = tempdir
        os.environ.pop("TMPDIR")
        if environment is not None:
            os.environ["TMPDIR"] = environment


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    try:
        import resource
    except ImportError:  # Windows
        yield
        return
    wanted = {resource.RLIMIT_DATA: _MAX_MEMORY, resource.RLIMIT_FSIZE: _MAX_FILE}
    before = {which: resource.getrlimit(which) for which in wanted}
    for which, limit in wanted.items():
        resource.setrlimit(which, (limit, before[which][1]))
    try:
        yield
    finally:
        for which, limits in before.items():
            resource.setrlimit(which, limits)


def _require_sound(result: TrialResult) -> None:
    """A test that fails on the solution would catch every mutant."""
    bad = [
        f"{o.test} is {o.outcome}: {' '.join(text for _, text in o.message[:4])}"
        for o in result.outcomes
        if o.outcome not in (PASSED, SKIPPED)
    ]
    if bad or not result.outcomes:
        what = ", ".join(bad) or f"no test ran: {result.output.strip()[-300:]}"
        raise CourseError(f"{result.trial.lesson.name}: the solution itself does not pass here: {what}")


def _judge(known: Known, mutant: Mutant, result: TrialResult) -> Judged:
    bad = [o for o in result.outcomes if o.outcome not in (PASSED, SKIPPED)]
    is_caught = bool(bad) or not result.outcomes  # no outcomes: it crashed the run, or had to be stopped
    if known.is_equivalent(mutant):
        state = MISLISTED if is_caught else EQUIVALENT
    else:
        state = CAUGHT if is_caught else SURVIVED
    names = tuple(match.ids for match in diagnose(mutant.lesson, result.outcomes).named)
    rightly = len(names) == 1 and known.is_mistake(mutant, names[0])
    only_slow = is_caught and all(o.outcome == TIMEOUT for o in bad)
    return Judged(mutant, state, frozenset(o.function for o in bad), only_slow, names, rightly)


HEADERS = [
    "lesson", "mutants", "equivalent", "caught", "survived", "named as the mistake that they are", "named wrongly",
]  # fmt: skip
HEADERS_ZH = ["课程", "变异体", "等价", "抓到", "漏掉", "命名为其等同的错误", "错误命名"]


def report(found: list[Tally], seed: int) -> bool:
    """Print the table, what survived and what was named; returns whether the bars are reached."""
    from course.tables import print_table

    rows = [[tally.lesson.name, *map(str, _counts(tally))] for tally in found]
    total = [sum(column) for column in zip(*map(_counts, found), strict=True)]
    headers = HEADERS_ZH if current() == "zh" else HEADERS
    print_table(headers, rows, [tr("all", "合计"), *map(str, total)])
    for tally in found:
        for one in tally.judged:
            _tell(one)
    caught, survived, wrong = total[2], total[3], total[5]
    mislisted = sum(tally.count(MISLISTED) for tally in found)
    share = caught / max(caught + survived, 1)
    print(
        tr(
            f"mutants (seed {seed}): {caught + survived} change behaviour, {share:.1%} of them caught; "
            f"{wrong} wrong names; {mislisted} wrongly listed as equivalent",
            f"变异体（种子 {seed}）：{caught + survived} 个改变了行为，抓到其中 {share:.1%}；"
            f"错误命名 {wrong} 个；误列为等价 {mislisted} 个",
        )
    )
    return share >= CAUGHT_SHARE and wrong == 0 and mislisted == 0


def _counts(tally: Tally) -> list[int]:
    states = [tally.count(state) for state in (EQUIVALENT, CAUGHT, SURVIVED)]
    return [len(tally.judged), *states, tally.named_rightly, tally.named_wrongly]


def _tell(one: Judged) -> None:
    """What a person should look at, with the lines for the list if it turns out to be harmless."""
    old, new = one.mutant.patch
    patch = f"patch = [['''{old}''', '''{new}''']]\nbecause = \"\""
    if one.state == SURVIVED:
        print(f"SURVIVED {one.mutant.id}\n[[equivalent]]\n{patch}\n")
    if one.state == MISLISTED:
        print(f"MISLISTED {one.mutant.id}: {', '.join(sorted(one.failed))}\n")
    if one.names and not one.is_named_rightly:
        says = " and ".join(" | ".join(ids) for ids in one.names)
        print(f'WRONG NAME {one.mutant.id}: {says}\n[[same]]\nmistake = "{one.names[0][0]}"\n{patch}\n')
    if one.only_slow:
        print(f"TIME LIMIT {one.mutant.id}: {', '.join(sorted(one.failed)) or 'the whole run'}\n")
