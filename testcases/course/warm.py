"""Run a module as a program in a process forked from one that has torch imported already.

Half of these tests run `pytest` or `course` in a toy course; cold, each run would spend three seconds on
imports. This module imports nothing of `course`, because the toy course has a copy of its own.
"""

import multiprocessing
import os
import runpy
import sys
from pathlib import Path

PRELOADED = ["torch", "numpy", "pytest", "rich.table", "rich.console"]


def start_server() -> multiprocessing.context.ForkServerContext:
    """The context whose processes are forked from a warm server."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def run_module(
    module: str, arguments: list[str], root: str, cwd: str, environment: dict, out: str, err: str
) -> None:
    """The body of the child: `python -m module arguments` with `root` on the path."""
    for descriptor, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    here = str(Path(__file__).resolve().parents[2])
    sys.path[:] = [root, *(path for path in sys.path if path not in ("", here))]
    for name in [name for name in sys.modules if name.partition(".")[0] in ("course", "testcases")]:
        del sys.modules[name]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
