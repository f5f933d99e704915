"""Test of docs/recovery.md: its commands are run in order, and print what the page shows. Both languages agree.

Run: pytest testcases/training/recovery_doc_test.py

`console` blocks are run; a `yaml` block that begins with "# name" is that file; `bash` blocks, which need several
machines or processes, are left to distributed_test.py.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from testcases.training.work import ROOT

PAGE, PAGE_ZH = ROOT / "docs" / "recovery.md", ROOT / "docs" / "recovery_zh.md"
MARK = "@@@ next command @@@"
ANY = "…"  # in the page: whatever lines come here
VARIES = (
    (r"tokens/s \S+", "tokens/s N"),
    (r"\d+\.\d+(e[+-]\d+)?", "N"),  # losses, rates, sizes
    (r"\d{1,3}(,\d{3})+", "N"),  # bytes
    (r"_\d{8}\.pt", "_DATE.pt"),
    (r" +", " "),  # a column is as wide as its widest number
)
LIMIT = 300


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of each fenced block."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(block: str) -> list[tuple[str, list[str]]]:
    """(command, lines that it prints) of a console block."""
    found: list[tuple[str, list[str]]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


def run(block: str, folder: Path) -> list[list[str]]:
    """The lines that each command prints; all of them in one shell, as the reader types them."""
    script = "".join(f"{command}\necho '{MARK}'\n" for command, _ in commands(block))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = dict(os.environ, PATH=path, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    shell = ["bash", "-c", f"exec 2>&1\n{script}"]
    done = subprocess.run(
        shell, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    printed = [text.strip("\n").splitlines() for text in done.stdout.split(MARK)[:-1]]
    return [[line for line in lines if not re.search(r"line \d+: +\d+ Killed", line)] for lines in printed]


def pattern(shown: list[str]) -> str:
    lines = [r"(?:.*\n)*" if line == ANY else re.escape(settled(line)) + r"\n" for line in shown]
    return "".join(lines)


def settled(line: str) -> str:
    """The line with a word in place of each number that differs from machine to machine."""
    for varying, word in VARIES:
        line = re.sub(varying, word, line)
    return line.rstrip()


@pytest.mark.limit(LIMIT)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the page uses GNU sed, dd and sha256sum")
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_each_command_of_the_page_prints_what_the_page_shows(tmp_path):
    (tmp_path / "my.txt").write_bytes("".join(topics.values()).encode("ascii", "ignore")[:60_000])
    for language, text in blocks(PAGE):
        if language == "yaml":
            (tmp_path / text.splitlines()[0].removeprefix("# ")).write_text(text, encoding="utf-8")
        if language != "console":
            continue
        printed = run(text, tmp_path)
        assert len(printed) == len(commands(text)), text
        for (command, shown), lines in zip(commands(text), printed, strict=True):
            got = "".join(f"{settled(line)}\n" for line in lines)
            assert re.fullmatch(pattern(shown), got), f"$ {command}\nprints\n{os.linesep.join(lines)}"


def test_a_line_that_the_page_does_not_show_is_noticed():
    assert re.fullmatch(pattern(["loss 3.20", ANY, "wrote it"]), "loss N\nmore\nwrote it\n")
    assert not re.fullmatch(pattern(["loss 3.20", "wrote it"]), "loss N\nmore\nwrote it\n")
    assert not re.fullmatch(pattern(["20 updates"]), "40 updates\n")


def test_every_command_for_checkpoints_is_on_the_page():
    from training.__main__ import build_parser

    actions = (
        build_parser()._subparsers._group_actions[0].choices["checkpoints"]._subparsers._group_actions[0]
    )  # type: ignore
    shown = PAGE.read_text(encoding="utf-8")
    assert [name for name in actions.choices if f"checkpoints {name} " not in shown] == []


def test_the_chinese_page_has_the_same_blocks_headings_and_tables():
    assert blocks(PAGE_ZH) == blocks(PAGE)
    outline = [
        re.findall(
            r"^(#+) |^(\|)",
            re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S),
            re.M,
        )
        for page in (PAGE, PAGE_ZH)
    ]
    assert outline[0] == outline[1]
    code = [
        [
            re.findall(r"`([^`]+)`", line)
            for line in page.read_text(encoding="utf-8").splitlines()
            if line.startswith("|")
        ]
        for page in (PAGE, PAGE_ZH)
    ]
    assert code[0] == code[1]
