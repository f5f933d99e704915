"""The `course` command: `course status | check | watch | hint | diff | adopt | reset | doctor | build | gates |
mistakes | learn`.

Run it as `course …` or `python -m course …`. Errors are one sentence on stderr and exit status 2; a check that
does not pass is exit status 1.
"""

import argparse
import itertools
import sys
from collections.abc import Callable
from pathlib import Path

from course import lang, maintenance, publish
from course.errors import CourseError
from course.lang import tr
from course.notebooks import command as notebooks
from course.registry import ROOT, Lesson, exam, find_lesson, find_task, lessons
from course.site import command as site


def main(argv: list[str] | None = None) -> int:
    """Parse, run, and turn a CourseError into a sentence. Returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        lang.choose(_language_of(arguments))
        options = _parser().parse_args(arguments)
        return options.run(options)
    except CourseError as error:
        print(f"course: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `course diff 02 | head`
        sys.stderr.close()
        return 0


def _language_of(arguments: list[str]) -> str | None:
    """`--lang` wherever it stands, because the help texts need it before anything is parsed."""
    for here, after in itertools.pairwise([*arguments, ""]):
        if here == "--lang":
            return after
        if here.startswith("--lang="):
            return here.removeprefix("--lang=")
    return None


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--lang", choices=lang.LANGUAGES, help=tr("language of messages", "消息语言"))
    parser = argparse.ArgumentParser(
        "course", parents=[common], description=tr("Work through the course.", "学习这门课。")
    )
    parser.set_defaults(run=status)
    commands = parser.add_subparsers(title=tr("commands", "命令"), metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], int], help_: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, parents=[common], help=help_, description=help_)
        command.set_defaults(run=run)
        return command

    add("status", status, tr("the map of lessons, with points", "课程地图与得分"))
    command = add(
        "check",
        check,
        tr("test your code of a lesson (default: the next one)", "测试某一课的代码（默认是下一课）"),
    )
    command.add_argument("lesson", nargs="?", help=tr("number, name or folder", "编号、名称或文件夹"))
    command.add_argument("--basic", action="store_true", help=tr("only the basic tests", "只运行基础测试"))
    command.add_argument(
        "--impl",
        default="tutorial",
        help=tr("tutorial, solutions or a folder", "tutorial、solutions 或文件夹"),
    )
    command.add_argument(
        "--explain",
        action="store_true",
        help=tr(
            "where a known mistake is named, show the lines that do it", "命名已知错误时，显示出错的那几行"
        ),
    )
    command = add(
        "watch",
        watch,
        tr("test your code of a lesson at each save", "每次保存后自动测试某一课的代码"),
    )
    command.add_argument("lesson", nargs="?", help=tr("number, name or folder", "编号、名称或文件夹"))
    add("hint", hint, tr("a hint for a task", "某个任务的提示")).add_argument("task", help="2.3")
    command = add(
        "diff", diff, tr("your code beside the solution, once the tests pass", "测试通过后，对照参考答案")
    )
    command.add_argument("lesson")
    command.add_argument("--spoil", action="store_true", help=tr("show it now", "现在就看"))
    for name, run, help_ in (
        (
            "adopt",
            adopt,
            tr("put the solution into your files, to go on with the next lesson", "采用参考答案，继续下一课"),
        ),
        ("reset", reset, tr("bring the empty skeleton back", "恢复空骨架")),
    ):
        command = add(name, run, help_)
        command.add_argument("lesson")
        command.add_argument(
            "--force",
            action="store_true",
            help=tr("replace what you wrote; a backup is kept", "替换你写的内容，会保留备份"),
        )
    add("doctor", doctor, tr("what works on this machine", "检查这台机器的环境"))
    add(
        "learn",
        learn,
        tr("the map, a check of your next lesson, what to do next", "地图、下一课的检查、接下来做什么"),
    )
    maintenance.add_commands(add)
    publish.add_commands(add)
    notebooks.add_commands(add)
    site.add_commands(add)
    return parser


def status(_: argparse.Namespace) -> int:
    """The map of lessons with points, and the next task."""
    from course.tables import print_table
    from course.workspace import standing

    final = exam()
    standings = [standing(lesson) for lesson in [*lessons(), *([final] if final is not None else [])]]
    rows = []
    for now in standings:
        lesson = now.lesson
        if now.done:
            state = tr("done", "完成")
        elif not now.results or not any(r.outcomes for r in now.results):
            state = tr("not checked yet", "还没有检查过") if now.started else tr("not started", "未开始")
        elif not now.fresh:
            state = tr("changed since the last check", "上次检查之后改动过")
        elif not now.complete:
            state = tr("only some of the tests were run", "只运行了部分测试")
        else:
            state = tr("in progress", "进行中") if now.started else tr("not started", "未开始")
        rows.append([lesson.number, lesson.title, lesson.stage, f"{now.points}/{lesson.points}", state])
    earned, possible = sum(now.points for now in standings), sum(now.lesson.points for now in standings)
    print_table(
        [
            tr("lesson", "课程"),
            tr("title", "标题"),
            tr("stage", "阶段"),
            tr("points", "得分"),
            tr("state", "状态"),
        ],
        rows,
        ["", tr("all", "合计"), "", f"{earned}/{possible}", ""],
    )
    upcoming = _next_lesson()
    if upcoming is None:
        print(tr("Every lesson is done.", "全部课程已完成。"))
    else:
        readme = upcoming.folder.relative_to(ROOT) / tr("README.md", "README_zh.md")
        print(
            tr(
                f"Next: lesson {upcoming.number}, {upcoming.title}. Read {readme}, "
                f"then `course check {upcoming.number}`.",
                f"下一步：第 {upcoming.number} 课，{upcoming.title}。先读 {readme}，"
                f"再运行 `course check {upcoming.number}`。",
            )
        )
    return 0


def _next_lesson() -> Lesson | None:
    from course.workspace import standing

    final = exam()
    everything = [*lessons(), *([final] if final is not None else [])]
    return next((lesson for lesson in everything if not standing(lesson).done), None)


def check(options: argparse.Namespace) -> int:
    """Run a lesson's tests on the student's code; exit status 0 only when all pass."""
    import pytest

    lesson = find_lesson(options.lesson) if options.lesson else _next_lesson()
    if lesson is None:
        print(tr("Every lesson is done.", "全部课程已完成。"))
        return 0
    targets = [str(path) for path in (lesson.test_files()[:1] if options.basic else lesson.test_files())]
    # No cache of failed tests and no header: what matters is the verdict, and it should come at once.
    arguments = [
        "-q",
        "--no-header",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(ROOT),
        "--lang",
        lang.current(),
    ]
    arguments += ["--explain"] if options.explain else []
    return int(pytest.main([*arguments, f"--impl={options.impl}", *targets]))


def watch(options: argparse.Namespace) -> int:
    """Run the tests at each save, until Ctrl-C."""
    lesson = find_lesson(options.lesson) if options.lesson else _next_lesson()
    if lesson is None:
        print(tr("Every lesson is done.", "全部课程已完成。"))
        return 0
    from course.watch.command import watch as keep_watching

    return keep_watching(lesson)


def hint(options: argparse.Namespace) -> int:
    lesson, task = find_task(options.task)
    print(f"{task.id} · {task.title} · {lesson.title} · {task.points} " + tr("points", "分"))
    print(task.hint.strip())
    return 0


def diff(options: argparse.Namespace) -> int:
    from course.workspace import diff as difference

    lesson = find_lesson(options.lesson)
    lines = difference(lesson, options.spoil)
    print("\n".join(lines) if lines else tr("No difference.", "没有差异。"))
    return 0


def adopt(options: argparse.Namespace) -> int:
    from course import workspace

    return _tell_replaced(*workspace.adopt(find_lesson(options.lesson), options.force))


def reset(options: argparse.Namespace) -> int:
    from course import workspace

    return _tell_replaced(*workspace.reset(find_lesson(options.lesson), options.force))


def _tell_replaced(written: list[Path], backup: Path | None) -> int:
    if not written:
        print(tr("Nothing to do: the files are like that already.", "无需改动：文件已经是这样了。"))
    for path in written:
        print(tr(f"wrote {path.relative_to(ROOT)}", f"已写入 {path.relative_to(ROOT)}"))
    if backup:
        print(
            tr(
                f"what you had is in {backup.relative_to(ROOT)}",
                f"原来的内容保存在 {backup.relative_to(ROOT)}",
            )
        )
    return 0


def doctor(_: argparse.Namespace) -> int:
    """Print the findings; exit status 1 when something is bad."""
    from course.doctor import BAD, NOTE, OK, examine
    from course.tables import print_table

    findings = list(examine())
    words = {OK: tr("ok", "正常"), NOTE: tr("note", "注意"), BAD: tr("BAD", "有问题")}
    print_table(
        [tr("what", "项目"), tr("state", "状态"), tr("details", "说明")],
        [[f.what, words[f.state], f.says] for f in findings],
    )
    return 1 if any(f.state == BAD for f in findings) else 0


def learn(options: argparse.Namespace) -> int:
    """What `make learn` ends with: the map, the check of the next lesson, what to do next."""
    status(options)
    lesson = _next_lesson()
    if lesson is None:
        return 0
    print(tr(f"$ course check {lesson.number}", f"$ course check {lesson.number}"))
    options.lesson, options.basic, options.impl, options.explain = lesson.number, True, "tutorial", False
    check(options)
    folder = lesson.folder.relative_to(ROOT)
    print(
        tr(
            f"\nThat was the check of lesson {lesson.number} on your files. To go on:\n"
            f"  1. read   {folder}/README.md\n"
            f"  2. write  {', '.join(p.name for p in lesson.student_files() if p.name != 'run.py')} in {folder}\n"
            f"  3. run    pytest {folder}/testcases/basic_test.py      (in .venv: `. .venv/bin/activate`)\n"
            f"            or `course check {lesson.number}`, which runs the advanced tests too",
            f"\n上面是对第 {lesson.number} 课现有代码的检查结果。接下来：\n"
            f"  1. 阅读  {folder}/README_zh.md\n"
            f"  2. 编写  {folder} 下的 {'、'.join(p.name for p in lesson.student_files() if p.name != 'run.py')}\n"
            f"  3. 运行  pytest {folder}/testcases/basic_test.py      （在 .venv 中：`. .venv/bin/activate`）\n"
            f"           或 `course check {lesson.number}`，会连同进阶测试一起运行",
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
