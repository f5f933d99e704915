"""`course docs build | check | browse | chromium`: make the site, and prove that it is whole."""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from course.errors import CourseError
from course.lang import tr
from course.registry import ROOT

AddCommand = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]


def add_commands(add: AddCommand) -> None:
    """Add the parser; `add(name, function, help)` makes one and returns it."""
    command = add("docs", docs, tr("maintainers: build and check the site", "维护者：生成并检查网站"))
    command.add_argument(
        "what",
        choices=("build", "check", "browse", "chromium"),
        help=tr(
            "build it; check its links; open every page in a browser; install that browser where it may be",
            "生成；检查链接；在浏览器里打开每一页；（在允许时）安装浏览器",
        ),
    )
    command.add_argument(
        "--out", type=Path, default=ROOT / "site", help=tr("folder of the site", "网站所在的目录")
    )


def docs(options: argparse.Namespace) -> int:
    """Exit status 1 when a check finds something."""
    # Imported here: Sphinx and selenium are installed only where the site is built (requirements-docs.txt).
    began = time.monotonic()
    if options.what == "build":
        from course.site.build import build

        build(options.out)
        count = sum(1 for _ in options.out.rglob("*.html"))
        print(
            tr(
                f"site: {count} pages in {time.monotonic() - began:.0f} s; open {options.out / 'index.html'}",
                f"网站：{count} 页，用时 {time.monotonic() - began:.0f} 秒；打开 {options.out / 'index.html'}",
            )
        )
        return 0
    if options.what == "chromium":
        from course.site.browser import install

        print(install())
        return 0
    if not (options.out / "index.html").is_file():  # nothing to look at would be nothing to find
        raise CourseError(
            tr(
                f"{options.out} holds no site: `course docs build` first",
                f"{options.out} 里没有网站：先运行 `course docs build`",
            )
        )
    if options.what == "check":
        from course.site.check import check

        report = check(options.out)
        return _tell(report.counts, report.problems, began)
    from course.site.browser import walk

    seen = walk(options.out)
    return _tell(seen.counts, seen.problems, began)


def _tell(counts: Counter[str], problems: list[str], began: float) -> int:
    for problem in problems:
        print(problem, file=sys.stderr)
    figures = ", ".join(f"{count:,} {what}" for what, count in sorted(counts.items()))
    print(f"{figures}; {len(problems)} " + tr("problems", "个问题") + f"; {time.monotonic() - began:.0f} s")
    return 1 if problems else 0
