"""The maintainers' commands: `course build | gates | mistakes`."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from course.errors import CourseError
from course.lang import tr
from course.registry import ROOT, TUTORIAL, Lesson, find_lesson, lessons, require_solutions

AddCommand = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]


def add_commands(add: AddCommand) -> None:
    """Add the parsers; `add(name, function, help)` makes one and returns it."""
    command = add(
        "build", build, tr("maintainers: write the skeletons from the solutions", "维护者：由答案生成骨架")
    )
    command.add_argument("lessons", nargs="*", metavar="lesson")
    command.add_argument(
        "--check",
        action="store_true",
        help=tr("write nothing; fail on any difference", "只检查，有差异就失败"),
    )
    command.add_argument(
        "--force", action="store_true", help=tr("replace edited skeletons too", "连同改过的骨架一起替换")
    )
    command = add(
        "gates", gates, tr("maintainers: prove that the tests are good", "维护者：证明测试本身可靠")
    )
    _add_lessons_and_jobs(command)
    command = add("mistakes", mistakes, tr("maintainers: the known mistakes", "维护者：已知的错误"))
    _add_lessons_and_jobs(command)
    command.add_argument(
        "--matrix",
        action="store_true",
        help=tr("make each one, and count how many are named", "逐个制造，统计有多少能被命名"),
    )
    command.add_argument(
        "--otherwise",
        action="store_true",
        help=tr("also in accepted variants of the code", "在可接受的变体代码上再做一遍"),
    )
    command.add_argument(
        "--pairs",
        type=int,
        default=0,
        metavar="N",
        help=tr("also N pairs of mistakes a lesson", "每课再取 N 对错误同时制造"),
    )
    command.add_argument(
        "--mutants",
        type=int,
        default=0,
        metavar="N",
        help=tr("instead: N random mutants of each solution", "改为每课取 N 个答案的随机变异体"),
    )
    command.add_argument("--seed", type=int, help=tr("of the mutants", "变异体的随机种子"))


def _add_lessons_and_jobs(command: argparse.ArgumentParser) -> None:
    command.add_argument("lessons", nargs="*", metavar="lesson")
    command.add_argument(
        "--jobs",
        type=int,
        help=tr("runs at a time (default: the number of cores)", "同时运行的个数（默认等于核心数）"),
    )


def build(options: argparse.Namespace) -> int:
    """Write the skeletons, the fingerprints and the gallery, or check that everything agrees."""
    from course import build as builder
    from course import gallery

    require_solutions("`course build`")
    chosen = _chosen(options.lessons)
    if options.check:
        problems = builder.check(chosen)
        for problem in problems:
            print(problem, file=sys.stderr)
        if not problems:
            _print_build_table(chosen)
        return 1 if problems else 0
    written, kept = builder.build(chosen, options.force)
    for name in written:
        print(tr(f"wrote tutorial/{name}", f"已写入 tutorial/{name}"))
    for lesson in chosen:
        _build_fingerprints(lesson)
    if made := gallery.build():
        print(tr(f"wrote {len(made)} files of docs/mistakes", f"已写入 docs/mistakes 的 {len(made)} 个文件"))
    for name in kept:
        print(
            tr(
                f"left alone: tutorial/{name} was edited (--force replaces it)",
                f"未改动：tutorial/{name} 被编辑过（--force 可替换）",
            ),
            file=sys.stderr,
        )
    return 1 if kept else 0


def _build_fingerprints(lesson: Lesson) -> None:
    from course import fingerprints
    from course.registry import MISTAKES

    if not (MISTAKES / f"{lesson.name}.toml").is_file():  # a lesson in the making
        return
    with _progress(lesson.name, len(fingerprints.stale(lesson)[0])) as advance:
        made = fingerprints.update(lesson, None, advance)
    if made:
        name = fingerprints.path_of(lesson).relative_to(ROOT)
        print(tr(f"wrote {name}: {len(made)} runs", f"已写入 {name}：运行 {len(made)} 次"))


@contextmanager
def _progress(name: str, total: int | None) -> Iterator[Callable[[], None]]:
    """A progress bar on a terminal; yields what to call after each step."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(name, total=total)
        yield lambda: bar.advance(task)


def _print_build_table(chosen: list[Lesson]) -> None:
    from course.build import lesson_tests
    from course.mistakes import read_catalogue
    from course.tables import print_table

    rows = []
    for lesson in chosen:
        catalogue = read_catalogue(lesson)
        counts = [
            len(lesson_tests(lesson)),
            len(lesson.tasks),
            len(catalogue.mistakes),
            len(catalogue.variants),
        ]
        rows.append([lesson.name, *map(str, counts)])
    total = [tr("all", "合计"), *(str(sum(int(row[i]) for row in rows)) for i in range(1, 5))]
    names = [
        tr("lesson", "课程"),
        tr("tests", "测试"),
        tr("tasks", "任务"),
        tr("mistakes", "错误"),
        tr("variants", "变体"),
    ]
    print_table(names, rows, total)


def gates(options: argparse.Namespace) -> int:
    """Run the gates, print the table and the holes; exit status 1 when there is one."""
    from course import gates as prover
    from course.tables import print_table

    require_solutions("`course gates`")
    chosen = _chosen(options.lessons)
    total = prover.count_trials(chosen)
    with _progress("gates", total) as advance:
        rows = prover.run_gates(chosen, options.jobs, advance)
    print_table(prover.headers(), [row.cells() for row in rows])
    for row in rows:
        for hole in row.holes:
            print(f"HOLE {row.lesson.name}: {hole}")
    good = sum(not row.holes for row in rows)
    print(
        tr(
            f"gates: {good} lessons passed, {len(rows) - good} failed, {total} runs",
            f"gates：{good} 课通过，{len(rows) - good} 课未通过，共 {total} 次运行",
        )
    )
    return 0 if good == len(rows) else 1


def mistakes(options: argparse.Namespace) -> int:
    """List the known mistakes; --matrix and --mutants measure what the tests and the diagnosis make of mistakes."""
    from course.mistakes import read_catalogue

    require_solutions("`course mistakes`")
    chosen = _chosen(options.lessons)
    if options.matrix:
        return _matrix(chosen, options)
    if options.mutants:
        return _mutants(chosen, options)
    for lesson in chosen:
        for entry in read_catalogue(lesson).mistakes:
            print(f"{entry.task:<5} {entry.id}")
    return 0


def _mutants(chosen: list[Lesson], options: argparse.Namespace) -> int:
    """Random mutants: how many are caught, and whether one gets a wrong name."""
    from course import mutation_run

    seed = mutation_run.SEED if options.seed is None else options.seed
    with _progress("mutants", None) as advance:
        found = mutation_run.measure(chosen, options.mutants, seed, options.jobs, advance)
    return 0 if mutation_run.report(found, seed) else 1


def _matrix(chosen: list[Lesson], options: argparse.Namespace) -> int:
    """Every known mistake, made and diagnosed anew."""
    from course import matrix
    from course.tables import print_table

    with _progress("matrix", None) as advance:
        found = matrix.measure(chosen, options.otherwise, options.pairs, options.jobs, advance)
    whole = matrix.total(found)
    print_table(
        matrix.headers(),
        [matrix.cells(v) for v in found],
        [tr("all", "合计"), *matrix.cells(whole)[1:]],
    )
    for v in found:
        for note in v.notes:
            print(f"{v.lesson.name}: {note}")
    return 0 if matrix.good(whole) else 1


def _chosen(names: list[str]) -> list[Lesson]:
    found = [find_lesson(name) for name in names] if names else lessons()
    if not found:
        raise CourseError(f"no lessons below {TUTORIAL}")
    return found
