"""`course notebooks build | run | check`: the maintainers' command for the notebooks of the lessons."""

import argparse
import itertools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from course.errors import CourseError
from course.lang import tr
from course.registry import Lesson, find_lesson, has_solutions, lessons, require_solutions

AddCommand = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]


def add_commands(add: AddCommand) -> None:
    """Add the parser; `add(name, function, help)` makes one and returns it."""
    command = add("notebooks", notebooks, tr("build, run or check the notebooks", "生成、运行或检查笔记本"))
    actions = command.add_subparsers(dest="action", required=True, metavar="build|run|check")
    for action, help_ in (
        ("build", tr("maintainers: write them from docs/notebooks", "维护者：由 docs/notebooks 生成")),
        ("run", tr("run them from a clean kernel", "在干净的内核里运行")),
        (
            "check",
            tr(
                "maintainers: sources, files and a fresh run agree",
                "维护者：检查源文件、笔记本与重新运行是否一致",
            ),
        ),
    ):
        parser = actions.add_parser(action, help=help_, description=help_)
        parser.add_argument("lessons", nargs="*", metavar="lesson")
        if action == "run":
            parser.add_argument(
                "--impl",
                help=tr(
                    "solutions, tutorial, skeletons (unwritten) or a folder; default: solutions, then skeletons",
                    "solutions、tutorial、skeletons（未动笔的骨架）或文件夹；默认先 solutions 后 skeletons",
                ),
            )
        if action == "check":
            without = tr("without running anything", "只比较文件，不运行")
            parser.add_argument("--sources", action="store_true", help=without)


def notebooks(options: argparse.Namespace) -> int:
    """Build, run or check; exit status 1 when something is wrong."""
    chosen = [find_lesson(name) for name in options.lessons] if options.lessons else lessons()
    if options.action == "build":
        return _build(chosen)
    if options.action == "run":
        return _run(chosen, options.impl)
    return _check(chosen, options.sources)


def _build(chosen: list[Lesson]) -> int:
    from course.notebooks.build import build

    require_solutions("course notebooks build")
    for lesson in chosen:
        for name in build(lesson):
            print(tr(f"wrote {name}", f"已写入 {name}"))
    return 0


def _run(chosen: list[Lesson], impl: str | None) -> int:
    """Every notebook from a clean kernel, and a table of what came of it."""
    from course.notebooks.execute import LIMIT, execute
    from course.notebooks.source import read_cells, source_of
    from course.tables import print_table

    impls = [impl] if impl else ["solutions", "skeletons"] if has_solutions() else ["tutorial"]
    rows, problems = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for lesson, name in itertools.product(chosen, impls):
            cells = read_cells(source_of(lesson))
            done = execute(
                lesson, cells, "en", _write_skeletons(lesson, scratch) if name == "skeletons" else name
            )
            code = sum(cell.kind == "code" for cell in cells)
            counts = len(cells), code, done.figures, f"{done.seconds:.1f}", len(done.errors)
            rows.append([lesson.name, name, *map(str, counts)])
            problems += [f"{lesson.name} ({name}): {error}" for error in done.errors]
            if done.seconds > LIMIT:
                problems.append(
                    f"{lesson.name} ({name}): {done.seconds:.0f} s, a notebook may take {LIMIT} s"
                )
    sums = [f"{sum(float(row[column]) for row in rows):g}" for column in range(2, 7)]
    print_table(
        [
            tr("lesson", "课程"),
            tr("code of", "代码"),
            tr("cells", "单元"),
            tr("run", "运行"),
            tr("figures", "图"),
            tr("seconds", "秒"),
            tr("errors", "错误"),
        ],
        rows,
        [tr("all", "合计"), "", *sums],
    )
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def _write_skeletons(lesson: Lesson, folder: str) -> str:
    """The lesson as a student gets it, below `folder`; returns the folder."""
    from course.build import skeletons

    place = Path(folder, lesson.path)
    place.mkdir(parents=True, exist_ok=True)
    for skeleton in skeletons(lesson):
        (place / skeleton.path.name).write_text(skeleton.text, encoding="utf-8")
    return folder


def _check(chosen: list[Lesson], sources_only: bool) -> int:
    from course.notebooks.check import check_files, check_fresh, check_leaks

    require_solutions("course notebooks check")
    problems = check_leaks(chosen)
    for lesson in chosen:
        try:
            problems += check_files(lesson)
            if not sources_only:
                problems += check_fresh(lesson)
        except CourseError as error:
            problems.append(str(error))
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        print(
            tr(
                f"notebooks: {len(chosen)} checked, no difference",
                f"notebooks：检查了 {len(chosen)} 个，没有差异",
            )
        )
    return 1 if problems else 0
