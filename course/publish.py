"""The commands of those who give the course to others: `course pages | release`."""

import argparse
import sys
from pathlib import Path

from course.lang import tr
from course.maintenance import AddCommand
from course.registry import ROOT


def add_commands(add: AddCommand) -> None:
    """Add the parsers; `add(name, function, help)` makes one and returns it."""
    add(
        "pages",
        pages,
        tr("maintainers: compare the two languages of every page", "维护者：比较每个页面的中英文版本"),
    )
    command = add(
        "release",
        release,
        tr("instructors: make a copy for students, without the solutions", "教师：制作不含参考答案的学生版"),
    )
    command.add_argument(
        "target",
        type=Path,
        help=tr("a folder that is new or empty, or a .zip file", "一个新的或空的文件夹，或者一个 .zip 文件"),
    )


def pages(_: argparse.Namespace) -> int:
    """Print every difference between a page and its twin, and how much was compared."""
    from course.drift import check
    from course.tables import print_table

    tally, problems = check(ROOT)
    for problem in problems:
        print(problem, file=sys.stderr)
    print_table([tr("compared", "比较的内容"), tr("count", "数量")], tally.rows())
    print(tr(f"{len(problems)} differences", f"{len(problems)} 处差异"))
    return 1 if problems else 0


def release(options: argparse.Namespace) -> int:
    """Make the release, and print what is in it and how it was searched."""
    from course.release import release as make

    made = make(options.target.absolute())
    search = made.search
    print(
        tr(
            f"{options.target}: {made.files} files, {made.bytes / 1e6:.1f} MB, {made.mistakes} known mistakes; "
            f"{made.unlinked} links to what is left out are plain text now",
            f"{options.target}：{made.files} 个文件，{made.bytes / 1e6:.1f} MB，{made.mistakes} 个已知错误；"
            f"{made.unlinked} 个指向未收录内容的链接已变为普通文字",
        )
    )
    if made.unknown:
        print(
            tr(
                f"{made.unknown} files that git does not know were left out",
                f"git 未跟踪的 {made.unknown} 个文件没有收录",
            )
        )
    print(
        tr(
            f"searched for {search.lines} lines of solutions in {search.files} files: none found",
            f"在 {search.files} 个文件里查找了 {search.lines} 行答案：一行也没有",
        )
    )
    return 0
