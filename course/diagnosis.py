"""Which known mistake a failing run shows: `diagnose(lesson, outcomes)`.

The run's differences from the solution are compared with the fingerprints (course/fingerprints.py), test case by
test case. A mistake is named when it explains everything: each test that failed fails in the mistake's way, and
each test that the mistake makes fail has failed. Two mistakes in different tasks are named together when every
failing test is explained by one of them; where both touch the same test, what it saw is a mixture and proves
nothing. A wrong name is worse than no name: whatever does not fit exactly gets none.
"""

import itertools
from dataclasses import dataclass, field

from course.fingerprints import Bank, Fails, case, read_bank, sights, tests_digest
from course.lang import tr
from course.mistakes import Entry, read_catalogue
from course.outcomes import FAILED, PASSED, TIMEOUT, TestOutcome
from course.registry import Lesson

MAX_ALTERNATIVES = 4  # a list of more mistakes than this is no diagnosis


@dataclass(frozen=True)
class Match:
    """One mistake in the run. Several ids: these cannot be told apart by the tests that ran."""

    ids: tuple[str, ...]
    task: str


@dataclass
class Diagnosis:
    """What a run shows. Nothing named: `reason` says why, and `first_divergence` is where to begin."""

    named: list[Match] = field(default_factory=list)
    first_divergence: TestOutcome | None = None
    reason: str = ""


def diagnose(lesson: Lesson, outcomes: list[TestOutcome]) -> Diagnosis:
    """Name the mistakes of a run on the default seed, or say why there is no name."""
    mine = [o for o in outcomes if o.lesson == lesson.name]
    result = Diagnosis(first_divergence=_first(lesson, mine))
    if result.first_divergence is None:
        return result
    bank = read_bank(lesson)
    if bank is None:
        result.reason = tr("this lesson has no fingerprints", "这一课没有指纹")
    elif bank.tests_digest != tests_digest(lesson):
        result.reason = tr("the tests of this lesson have been changed", "这一课的测试被改动过")
    elif missing := _not_run(bank, mine):
        result.reason = tr(
            f"it takes whole test files, and {len(missing)} tests were not run",
            f"需要完整的测试文件，而有 {len(missing)} 个测试没有运行",
        )
    else:
        tasks = {entry.id: entry.task for entry in read_catalogue(lesson).mistakes if not entry.varies}
        result.named = _Matching(bank, tasks, mine).named()
        if not result.named:
            result.reason = tr("no known mistake explains all of this", "已知的错误都不能完全解释这些结果")
    return result


def entries_of(lesson: Lesson, match: Match) -> list[Entry]:
    """The catalogue's entries for a match."""
    return [entry for entry in read_catalogue(lesson).mistakes if entry.id in match.ids]


def _first(lesson: Lesson, outcomes: list[TestOutcome]) -> TestOutcome | None:
    """The failed test of the earliest task, a basic one if there is one: the others may only follow from it."""
    order = [task.id for task in lesson.tasks]

    def rank(outcome: TestOutcome) -> tuple[int, bool]:
        known = [order.index(task) for task in outcome.tasks if task in order]
        return min(known, default=len(order)), outcome.file != "basic_test"

    return min((o for o in outcomes if o.outcome in (FAILED, TIMEOUT)), key=rank, default=None)


def _not_run(bank: Bank, outcomes: list[TestOutcome]) -> set[str]:
    """The test cases left out of the files that ran (-k, -x): what they would have shown is not known."""
    files = {o.file for o in outcomes}
    return {t for t in bank.tests if t.partition("::")[0] in files} - {case(o) for o in outcomes}


class _Matching:
    """The search for the mistakes of one run, among the fingerprints of its lesson."""

    def __init__(self, bank: Bank, tasks: dict[str, str], outcomes: list[TestOutcome]) -> None:
        ran = {case(o) for o in outcomes if o.outcome in (PASSED, FAILED, TIMEOUT)}
        self.tasks = tasks
        self.seen: Fails = {test: sight for test, sight in sights(outcomes).items() if test in bank.tests}
        # For each mistake, the tests that it makes fail, of those that ran: true where the run fails likewise.
        # A mistake that makes a test fail which has passed is not in the run.
        self.agrees: dict[str, dict[str, bool]] = {}
        for name in tasks:
            fails = {test: sight for test, sight in bank.fails.get(name, {}).items() if test in ran}
            if fails and fails.keys() <= self.seen.keys():
                self.agrees[name] = {test: sight.same(self.seen[test]) for test, sight in fails.items()}

    def named(self) -> list[Match]:
        """The one mistake, or else the two, that explain every test that failed."""
        alone = [
            name
            for name, agrees in self.agrees.items()
            if agrees.keys() == self.seen.keys() and all(agrees.values())
        ]
        if alone:
            return [self._match(alone)] if len(alone) <= MAX_ALTERNATIVES else []
        pairs = [
            tuple(sorted(pair, key=self.tasks.__getitem__))
            for pair in itertools.combinations(self.agrees, 2)
            if self._explain(*pair)
        ]
        firsts, seconds = sorted({one for one, _ in pairs}), sorted({other for _, other in pairs})
        tasks = {(self.tasks[one], self.tasks[other]) for one, other in pairs}
        # Alternatives on one side or on both are a diagnosis; alternatives that hang together are a guess.
        if len(tasks) != 1 or len(pairs) != len(firsts) * len(seconds) or len(pairs) > MAX_ALTERNATIVES:
            return []
        return [self._match(firsts), self._match(seconds)]

    def _explain(self, one: str, other: str) -> bool:
        """Whether two mistakes of different tasks explain every failed test, and each one of them for itself."""
        if self.tasks[one] == self.tasks[other]:
            return False
        a, b = self.agrees[one], self.agrees[other]
        own = [[test for test in mine if test not in others] for mine, others in ((a, b), (b, a))]
        return (
            all(own)
            and a.keys() | b.keys() == self.seen.keys()
            and all(a[test] for test in own[0])
            and all(b[test] for test in own[1])
        )

    def _match(self, names: list[str]) -> Match:
        return Match(tuple(names), self.tasks[names[0]])
