"""The gallery of known mistakes, docs/mistakes/: made by `course build` from the catalogue and the fingerprints.

One page a lesson, in both languages: what each mistake does, its first symptom as a number or a small curve, the
tests that catch it, where it was seen. Nothing is run: the numbers are those of the fingerprints. A page never says
how to mend a mistake, because students read it.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from course import lang
from course.fingerprints import read_bank
from course.lang import tr
from course.mistakes import Entry, read_catalogue
from course.progress import write_text
from course.registry import MISTAKES, ROOT, Lesson, lessons
from course.symptom import Symptom, first_symptom, function, sentence

FOLDER = ROOT / "docs" / "mistakes"
_MAX_BYTES = 2_000_000  # of the whole gallery
_CODE_SPAN = re.compile(r"(`+.+?`+)")
_OBSERVED = re.compile(r'\bobserve\(\s*"([^"]+)"')


@dataclass(frozen=True)
class Shelf:
    """The mistakes of one lesson; `tests` is the number of its test cases."""

    lesson: Lesson
    entries: list[Entry]
    symptoms: dict[str, Symptom]
    tests: int


def build() -> list[str]:
    """Write what has changed, remove what no longer belongs there. Returns the names of the files."""
    wanted = files()
    changed = []
    for path, text in wanted.items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
            changed.append(_name(path))
    for path in _strays(wanted):
        path.unlink()
        changed.append(_name(path))
    return changed


def check() -> list[str]:
    """What `build` would change, in one sentence."""
    wanted = files()
    old = [
        _name(path)
        for path, text in wanted.items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    old += [_name(path) for path in _strays(wanted)]
    problems = []
    if old:
        problems.append(
            f"docs/mistakes: {len(old)} files are old or missing ({', '.join(old[:3])} …): run `course build`"
        )
    size = sum(len(text.encode()) for text in wanted.values())
    if size > _MAX_BYTES:
        problems.append(f"docs/mistakes: {size} bytes, more than {_MAX_BYTES}")
    return problems


def _name(path: Path) -> str:
    return path.relative_to(FOLDER).as_posix()


def _strays(wanted: dict[Path, str]) -> list[Path]:
    return [path for path in sorted(FOLDER.rglob("*")) if path.is_file() and path not in wanted]


def files() -> dict[Path, str]:
    """Every file of the gallery, with its text."""
    found: dict[Path, str] = {}
    shelves = [shelf for shelf in map(_shelf, lessons()) if shelf is not None]
    for shelf in shelves:
        for name, symptom in shelf.symptoms.items():
            if symptom.figure:
                found[FOLDER / _figure_path(shelf.lesson, name)] = symptom.figure
    for language in lang.LANGUAGES:
        with lang.speaking(language):
            for shelf in shelves:
                found[FOLDER / f"{shelf.lesson.name}{_ending()}.md"] = _page(shelf)
            found[FOLDER / f"README{_ending()}.md"] = _index(shelves)
    return found


def _shelf(lesson: Lesson) -> Shelf | None:
    """None for a lesson without a catalogue or without fingerprints: it is in the making."""
    if not (MISTAKES / f"{lesson.name}.toml").is_file() or (bank := read_bank(lesson)) is None:
        return None
    noted = frozenset(
        name for path in lesson.test_files() for name in _OBSERVED.findall(path.read_text("utf-8"))
    )
    entries = [entry for entry in read_catalogue(lesson).mistakes if bank.fails.get(entry.id)]
    symptoms = {entry.id: first_symptom(bank, entry, noted) for entry in entries}
    return Shelf(lesson, entries, symptoms, len(bank.tests))


def _figure_path(lesson: Lesson, entry_id: str) -> str:
    return f"figures/{lesson.name}/{entry_id}.svg"


def _ending() -> str:
    return tr("", "_zh")


# ---------------------------------------------------------------------------------------------------- pages


_WHAT = (
    "Each of these was made on purpose, in a copy of the solutions, and then the lesson's tests were run. What they "
    "saw is kept, and shown here: the first symptom of each mistake, as a number or as a small curve. When your own "
    "run shows exactly the same, `course check` names the mistake.",
    "这里的每个错误，都是在参考答案的副本上故意制造出来的，然后运行那一课的测试，把测试看到的东西记下来。"
    "这里展示的就是它们：每个错误最先表现出的症状，是一个数，或一条小曲线。"
    "你自己的代码表现得一模一样时，`course check` 会直接说出是哪个错误。",
)
_NO_CURE = (
    "A page says what goes wrong and why. It does not say which line mends it: that is your part.",
    "页面会说错在哪里、为什么会这样，但不说该改成哪一行：那是留给你做的。",
)
_CURVES = (
    "In the curves, orange is what the mistake gives. Where a blue dashed line is drawn beside it, that is what is "
    "expected; where there is none, the curve is the distance from it, and 0 would be right. Below the axis stand the "
    "first steps at which the test found a difference.",
    "曲线里橙色的是错误的代码给出的值。旁边有蓝色虚线时，虚线是应有的值；没有虚线时，曲线画的是与应有值的距离，"
    "0 才是对的。横轴下面是测试最早发现差异的那几步。",
)
_ORIGIN = (
    "These pages are written by `course build`, from `testcases/mistakes/`.",
    "这些页面由 `course build` 根据 `testcases/mistakes/` 生成。",
)


def _index(shelves: list[Shelf]) -> str:
    table = [
        tr(
            "| lesson | mistakes | with a curve | seen in real projects |",
            "| 课程 | 错误 | 有曲线 | 真实项目 |",
        ),
        "| --- | --- | --- | --- |",
    ]
    totals = [0, 0, 0]
    for shelf in shelves:
        curves = sum(bool(symptom.figure) for symptom in shelf.symptoms.values())
        counts = [len(shelf.entries), curves, sum(bool(entry.seen) for entry in shelf.entries)]
        totals = [total + count for total, count in zip(totals, counts, strict=True)]
        lesson = shelf.lesson
        link = f"[{lesson.number} {lesson.title}]({lesson.name}{_ending()}.md)"
        table.append(f"| {link} | {' | '.join(map(str, counts))} |")
    table.append(f"| {tr('all', '合计')} | {' | '.join(map(str, totals))} |")
    return _lines(
        tr("# Known mistakes", "# 已知的错误"),
        tr("中文：[README_zh.md](README_zh.md)", "English: [README.md](README.md)"),
        tr(*_WHAT),
        tr(*_NO_CURE),
        "\n".join(table),
        tr(*_CURVES),
        tr(*_ORIGIN),
    )


def _page(shelf: Shelf) -> str:
    lesson, name, count = shelf.lesson, shelf.lesson.name, len(shelf.entries)
    readme = f"../../tutorial/{lesson.path}/README{_ending()}.md"
    parts = [
        tr(f"# Lesson {lesson.number} · known mistakes", f"# 第 {lesson.number} 课 · 已知的错误"),
        tr(f"中文：[{name}_zh.md]({name}_zh.md)", f"English: [{name}.md]({name}.md)"),
        tr(
            f"{count} mistakes in lesson {lesson.number}, [{lesson.title}]({readme}), by task. "
            "How to read the curves: [Known mistakes](README.md).",
            f"第 {lesson.number} 课[{lesson.title}]({readme})的 {count} 个错误，按任务排列。"
            "曲线的读法见[已知的错误](README_zh.md)。",
        ),
    ]
    for task in lesson.tasks:
        mine = [entry for entry in shelf.entries if entry.task == task.id]
        if not mine:
            continue
        parts.append(f"## {tr('Task', '任务')} {task.id} · {_plain(task.title)}")
        parts.append(" · ".join(f"[{entry.id}](#{entry.id})" for entry in mine))
        for entry in mine:
            parts += _entry(shelf, entry)
    return _lines(*parts)


def _entry(shelf: Shelf, entry: Entry) -> list[str]:
    symptom = shelf.symptoms[entry.id]
    parts = [f"### {entry.id}", _plain(tr(entry.says, entry.says_zh))]
    if symptom.figure:
        quantity, test = symptom.figure_of, function(symptom.figure_test)
        what = tr(
            f"{quantity} by step in {test}"
            if symptom.against
            else f"how far {quantity} is off by step in {test}",
            f"{test} 里各步的 {quantity}" if symptom.against else f"{test} 里各步 {quantity} 的偏差",
        )
        parts.append(f"![{_plain(what)}]({_figure_path(shelf.lesson, entry.id)})")
        caption = _plain(_caption(symptom))
        parts.append(tr(f"*{caption}*", caption))  # Chinese has no italics: browsers put dots below instead
    named = tr(", ", "、").join(f"`{test}`" for test in entry.caught_by)
    rows = [
        f"- {tr('First symptom', '最先的症状')}{tr(': ', '：')}{sentence(symptom)}"
        + tr(" ({})", "（{}）").format(f"`{function(symptom.test)}`"),
        tr(
            f"- Caught by {named}; {symptom.failing} of {shelf.tests} test cases fail",
            f"- 能抓到它的测试：{named}；{shelf.tests} 个用例里 {symptom.failing} 个失败",
        ),
    ]
    if entry.seen:
        rows.append(tr("- Seen in ", "- 出处：") + f"[{_short(entry.seen)}]({entry.seen})")
    return [*parts, "\n".join(rows)]


def _caption(symptom: Symptom) -> str:
    quantity, test = f"`{symptom.figure_of}`", f"`{function(symptom.figure_test)}`"
    if symptom.against:
        return tr(f"{quantity} by step, in {test}", f"{quantity}，逐步，见 {test}")
    return tr(f"Distance of {quantity} by step, in {test}", f"{quantity} 的偏差，逐步，见 {test}")


def _short(url: str) -> str:
    """`owner/project#12` for GitHub, the host for everything else."""
    match = re.match(r"https://github\.com/([\w.-]+/[\w.-]+)/(?:issues|pull|discussions)/(\d+)", url)
    return f"{match[1]}#{match[2]}" if match else url.partition("://")[2].partition("/")[0]


def _lines(*parts: str) -> str:
    return "\n\n".join(parts) + "\n"


def _plain(text: str) -> str:
    """A sentence of the catalogue as Markdown: what looks like markup outside of code spans is none."""
    parts = _CODE_SPAN.split(text)
    for index in range(0, len(parts), 2):
        parts[index] = re.sub(r"([*$|\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", parts[index]).replace("<", "&lt;")
    return "".join(parts)
