"""What a lesson's notebook imports: the student's own code, experiments that never end in a wall of errors, a style.

For the writer of a notebook (docs/notebooks/lessonNN_….py, cells as `course/notebooks/source.py` reads them):

    from course.notebook import experiment, mine            # this import also sets the style of the plots
    SGD = mine("01", "optimizer.SGDFromScratch", needs="1.1 1.3", reference=torch.optim.SGD)

    with experiment():                                      # one `with` around what a cell runs
        lr = 0.05                                           # the knobs come first
        optimizer = SGD([weight], lr=lr)
        fig, ax = plt.subplots(figsize=(7, 3))
        ax.plot(losses, label="momentum 0.9")

* `mine` gives the student's object where the tasks in `needs` are written. Otherwise `reference` (torch's, or one
  of `training/` with the same interface); without one, the object of `solutions/` where that folder is there; otherwise
  a placeholder, and the experiments that use it are left out. It prints which of the four it is, in the language of
  the notebook. Every call reads the files afresh: edit, save, run the cell again.
* `experiment` seeds all generators, so that each cell gives the same picture alone and in order. What stops the
  student's code (an unwritten task, a crash, a loop without an end) becomes one sentence. A fault of the notebook
  itself is raised as it is.
* Pictures: labels in English, `figsize` up to (8, 4). Take colours from the cycle ("C0" … "C5": each has a line
  style of its own), and `GREY` for what stands in the background. Do not set black or white: the page may be dark.
* Print numbers and names that are in the code; sentences belong into the text cells, which have two languages. The
  two texts of a cell have the same headings, paragraphs, formulas, inline code and decimal numbers (`course pages`).
* Try it: `python -m course notebooks run 01`, then `… build 01`, then `… check 01`.

`COURSE_IMPL` chooses whose code it is: `tutorial` (the student's, the default), `solutions`, or a folder.
"""

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from cycler import cycler

from course.failures import TimeLimitExceeded
from course.implementation import Implementation
from course.notebooks.student import Absent, explain, headline, load, say, tr, unwritten
from course.registry import Lesson, find_lesson, has_solutions

# Each colour has at least three times the contrast to white and to a dark page, and is told from its neighbours by
# colour-blind readers (four are Okabe and Ito's, https://jfly.uni-koeln.de/color/); line styles say it a second time.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#BE6E9C", "#A87B00", "#7F7F7F")
GREY = "#7F7F7F"
STYLE: Any = {
    "axes.prop_cycle": cycler(color=COLORS)
    + cycler(linestyle=["-", "--", "-.", ":", (0, (5, 1, 1, 1)), "-"]),
    "figure.facecolor": "none",  # transparent: the page behind it may be light or dark
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "figure.dpi": 100,
    "figure.figsize": (7, 3),
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "lines.linewidth": 1.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), GREY
    ),
}
mpl.rcParams.update(STYLE)
torch.set_num_threads(1)  # the tensors here are small, and one thread adds up in the same order everywhere


def mine(lesson: str, name: str, needs: str, reference: Any = None) -> Any:
    """The student's object, or what stands in for it; prints which.

    Args:
        lesson: as for `course check`, e.g. "01".
        name: module and attribute, e.g. "optimizer.SGDFromScratch".
        needs: the tasks without which it cannot be used here, e.g. "1.1 1.3".
        reference: an object with the same interface, or None for that of `solutions/`.
    """
    found = find_lesson(lesson)
    implementation = Implementation(os.environ.get("COURSE_IMPL", "tutorial"))
    short = name.rpartition(".")[2]
    try:
        missing = unwritten(implementation.folder(found)) & set(needs.split())
        if not missing:
            own = load(implementation, found, name)
            if implementation.package == "solutions":
                say(
                    f"{short}: the course's own code. Run this cell, and yours takes its place.",
                    f"{short}：课程自带的代码。运行这个单元，就会换成你写的。",
                )
            else:
                say(f"{short}: yours", f"{short}：你写的")
            return own
        first = min(missing, key=lambda task: tuple(map(int, task.split("."))))
        why = tr(f"task {first} is not written yet", f"任务 {first} 还没写")
    except (Exception, SystemExit) as error:  # whatever the student's file does on import
        if implementation.package == "solutions":
            raise
        file = f"{name.partition('.')[0]}.py"
        why = tr(f"{file} does not load: {headline(error)}", f"{file} 加载不了：{headline(error)}")
    return _stand_in(found, name, reference, why)


def _stand_in(lesson: Lesson, name: str, reference: Any, why: str) -> Any:
    short = name.rpartition(".")[2]
    if reference is None and has_solutions():
        reference = load(Implementation("solutions"), lesson, name)
        whose, whose_zh = "the course's", "课程自带的"
    elif reference is not None:
        package = reference.__module__.partition(".")[0]
        whose = "the notebook's" if package == "__main__" else f"{package}'s {reference.__qualname__}"
        whose_zh = "本笔记里的" if package == "__main__" else f"{package} 的 {reference.__qualname__}"
    else:
        sentence = tr(f"{short} is not there, because {why}.", f"没有 {short}，因为{why}。")
        print(sentence)
        return Absent(sentence)
    say(f"{short}: the reference ({whose}), because {why}", f"{short}：参考实现（{whose_zh}），因为{why}")
    return reference


@contextlib.contextmanager
def experiment(seconds: float = 30, seed: int = 0) -> Iterator[None]:
    """Run a cell's experiment: seeded, and what stops the student's code is told in one sentence.

    Args:
        seconds: the time after which it is stopped (where signals can do that: not on Windows).
        seed: of the generators of Python, numpy and torch.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    try:
        with _time_limit(seconds):
            yield
    except (Exception, SystemExit, TimeLimitExceeded) as error:
        sentence = explain(error)
        if sentence is None:
            raise
        plt.close("all")  # half a picture would say something else
        print(sentence)


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        yield
        return

    began, computed = time.monotonic(), time.process_time()

    def stop(signum: int, frame: FrameType | None) -> None:
        # A busy machine is no loop without an end: who has hardly computed gets more time.
        if time.process_time() - computed < seconds / 2 and time.monotonic() - began < 4 * seconds:
            signal.setitimer(signal.ITIMER_REAL, seconds / 4)
            return
        raise TimeLimitExceeded(seconds)

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
