"""`course mistakes --matrix`: how often the diagnosis names a known mistake, measured on fresh runs.

Every mistake is made again, in a fresh process, and diagnosed from what the tests then see. `--otherwise` makes it
in code whose other tasks are written in another way: on top of an accepted variant whose patch fits together with
it. `--pairs N` makes two mistakes of different tasks at once, N random pairs a lesson. Variants and the skeleton
must get no name at all.

A run under `ATEN_CPU_CAPABILITY=default` computes without vector instructions, as another processor would.
"""

import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from course.build import skeletons
from course.diagnosis import diagnose
from course.errors import CourseError
from course.lang import current
from course.mistakes import Entry, read_catalogue, write_patched
from course.outcomes import FAILED, TIMEOUT, TestOutcome
from course.registry import Lesson
from course.skeleton import find_regions
from course.trials import Trial, TrialResult, run_trials

RIGHT, AMBIGUOUS, PARTLY, NONE, WRONG = "right", "ambiguous", "partly", "none", "wrong"
_SEED = 20240229  # of the choice of variants and pairs
UNIQUE_SHARE = 0.95  # of the catalogue must be named uniquely


@dataclass
class Verdicts:
    """What the diagnosis said of one lesson's runs."""

    lesson: Lesson
    mistakes: int = 0
    caught: int = 0
    alone: Counter[str] = field(default_factory=Counter)  # a mistake in the solution
    basic: Counter[str] = field(default_factory=Counter)  # the same run, seen through the basic tests only
    otherwise: Counter[str] = field(default_factory=Counter)  # a mistake in a variant
    pairs: Counter[str] = field(default_factory=Counter)  # two mistakes
    sound: Counter[str] = field(default_factory=Counter)  # variants and the skeleton: NONE, or WRONG
    notes: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> int:
        return sum(c[WRONG] for c in (self.alone, self.basic, self.otherwise, self.pairs, self.sound))


@dataclass(frozen=True)
class _Case:
    """One run: what was planted (mistake ids), and which count it goes into."""

    kind: str
    planted: tuple[str, ...]


def measure(
    chosen: list[Lesson], otherwise: bool, pairs: int, jobs: int | None, on_result: Callable[[], None]
) -> list[Verdicts]:
    """Make all the runs and judge them, lesson by lesson."""
    found = []
    for lesson in chosen:
        verdicts = Verdicts(lesson)
        with tempfile.TemporaryDirectory(prefix="course-matrix-") as scratch:
            cases = dict(_cases(lesson, otherwise, pairs, Path(scratch)))
            for result in run_trials([Trial(str(path), lesson, path) for path in cases], jobs):
                _judge(verdicts, cases[result.trial.impl], result)
                on_result()
        found.append(verdicts)
    return found


def _cases(lesson: Lesson, otherwise: bool, pairs: int, scratch: Path) -> Iterator[tuple[Path, _Case]]:
    """(folder with the code, what is in it) for every run of the lesson."""
    catalogue, draw = read_catalogue(lesson), random.Random(f"{_SEED} {lesson.name}")
    empty = scratch / "skeleton" / lesson.stage / lesson.name
    empty.mkdir(parents=True)
    for skeleton in skeletons(lesson):
        (empty / skeleton.path.name).write_text(skeleton.text, encoding="utf-8")
    yield scratch / "skeleton", _Case("sound", ())
    for entry in catalogue.variants:
        yield _write(lesson, scratch, entry), _Case("sound", ())
    for entry in catalogue.mistakes:
        yield _write(lesson, scratch, entry), _Case("alone", (entry.id,))
        if otherwise:
            fitting = [v for v in catalogue.variants if entry.task not in _tasks(lesson, v)]
            fitting = [v for v in fitting if _fit(lesson, v, entry)]
            if fitting:
                yield _write(lesson, scratch, draw.choice(fitting), entry), _Case("otherwise", (entry.id,))
    for _ in range(pairs):
        one = draw.choice(catalogue.mistakes)
        others = [m for m in catalogue.mistakes if m.task != one.task and _fit(lesson, one, m)]
        if others:
            other = draw.choice(others)
            folder = _write(lesson, scratch, one, other)
            yield folder, _Case("pairs", (one.id, other.id))


def _write(lesson: Lesson, scratch: Path, *entries: Entry) -> Path:
    folder = scratch / "+".join(entry.id for entry in entries)
    write_patched(lesson, _together(*entries), folder)
    return folder


def _together(*entries: Entry) -> Entry:
    return Entry("", tuple(patch for entry in entries for patch in entry.patches), "")


def _fit(lesson: Lesson, first: Entry, second: Entry) -> bool:
    """Whether both can be made: each text to replace still stands there once when its turn comes."""
    sources = {path.name: path.read_text(encoding="utf-8") for path in lesson.solution_files()}
    for patch in _together(first, second).patches:
        if sources[patch.file].count(patch.old) != 1:
            return False
        sources[patch.file] = sources[patch.file].replace(patch.old, patch.new)
    return True


def _tasks(lesson: Lesson, entry: Entry) -> set[str]:
    """The tasks whose regions the entry's patches reach into."""
    found = set()
    for patch in entry.patches:
        source = (lesson.solution_folder / patch.file).read_text(encoding="utf-8")
        first = source.count("\n", 0, source.index(patch.old)) + 1
        last = first + patch.old.rstrip("\n").count("\n")
        regions = find_regions(source, patch.file)
        found |= {r.task for r in regions if r.begin <= last and first <= r.end}
    return found


def _judge(verdicts: Verdicts, what: _Case, result: TrialResult) -> None:
    if not result.outcomes:
        raise CourseError(f"{result.trial.key}: no test ran: {result.output.strip()[-300:]}")
    verdict = _verdict(verdicts, what, result.outcomes)
    getattr(verdicts, what.kind)[verdict] += 1
    if what.kind == "alone":
        verdicts.mistakes += 1
        verdicts.caught += any(o.outcome in (FAILED, TIMEOUT) for o in result.outcomes)
        basic = [o for o in result.outcomes if o.file == "basic_test"]
        if any(o.outcome in (FAILED, TIMEOUT) for o in basic):
            verdicts.basic[_verdict(verdicts, what, basic)] += 1


def _verdict(verdicts: Verdicts, what: _Case, outcomes: list[TestOutcome]) -> str:
    """Compare the names with what was planted. Ids that the tests cannot tell apart are one ambiguous name."""
    named = diagnose(verdicts.lesson, outcomes).named
    names = {name for match in named for name in match.ids}
    found = [planted for planted in what.planted if planted in names]
    stray = [match for match in named if not set(match.ids) & set(what.planted)]
    if not named:
        verdict = NONE
    elif stray:
        verdict = WRONG
    elif len(found) < len(what.planted):
        verdict = PARTLY
    else:
        verdict = RIGHT if len(names) == len(found) else AMBIGUOUS
    if verdict in (WRONG, AMBIGUOUS) or (verdict == NONE and what.planted):
        says = "; ".join(" | ".join(match.ids) for match in named)
        verdicts.notes.append(f"{what.kind} {' + '.join(what.planted)}: {verdict} {says}".rstrip())
    return verdict


HEADERS = [
    "lesson", "mistakes", "caught", "named uniquely", "ambiguous", "not named", "named wrongly",
    "basic tests alone", "written otherwise", "two at once", "sound code named",
]  # fmt: skip
HEADERS_ZH = [
    "课程", "错误", "抓到", "唯一命名", "并列命名", "未命名", "错误命名",
    "只用基础测试", "换一种写法", "两个同时", "正确代码被命名",
]  # fmt: skip


def headers() -> list[str]:
    """The table's headings in the language in force."""
    return HEADERS_ZH if current() == "zh" else HEADERS


def cells(v: Verdicts) -> list[str]:
    """A row of the table. Pairs of numbers are "named of runs"; a name that is wrong shows in its own column."""

    def share(count: Counter[str]) -> str:
        return f"{count[RIGHT] + count[AMBIGUOUS]} of {count.total()}" if count else ""

    numbers = [v.mistakes, v.caught, v.alone[RIGHT], v.alone[AMBIGUOUS], v.alone[NONE], v.wrong]
    return [
        v.lesson.name, *map(str, numbers), share(v.basic), share(v.otherwise), share(v.pairs),
        f"{v.sound[WRONG]} of {v.sound.total()}",
    ]  # fmt: skip


def total(found: list[Verdicts]) -> Verdicts:
    """All lessons together."""
    whole = Verdicts(found[0].lesson)
    for v in found:
        whole.mistakes, whole.caught = whole.mistakes + v.mistakes, whole.caught + v.caught
        for name in ("alone", "basic", "otherwise", "pairs", "sound"):
            getattr(whole, name).update(getattr(v, name))
    return whole


def good(v: Verdicts) -> bool:
    """All caught, nearly all named, and not one name that is wrong."""
    return v.caught == v.mistakes and v.wrong == 0 and v.alone[RIGHT] >= UNIQUE_SHARE * v.mistakes
