"""A pseudo-terminal on which `course` runs, for tests of what it shows and of Ctrl-C."""

import os
import pty
import re
import select
import signal
import time

import pytest

from testcases.course import warm

PATIENCE = 60  # seconds; a test that passes never waits so long
ANSI = re.compile(r"\x1b\[[0-9;]*m")


class Screen:
    """A terminal on which `course watch` runs."""

    def __init__(self, toy, *arguments):
        self.master, slave = pty.openpty()
        environment = {**toy._environment(), "TERM": "xterm"}
        where = (os.ttyname(slave), ["watch", *arguments], str(toy.root), environment)
        self.process = toy.server.Process(target=run_on_terminal, args=where)
        self.process.start()
        self.slave, self.text = slave, ""

    def until(self, *words, end_of_line="[^\n]*\n"):
        """Everything from here up to the end of the line where all `words` have come, in this order."""
        pattern = re.compile(".*?".join(map(re.escape, words)) + end_of_line, re.DOTALL)
        end = time.monotonic() + PATIENCE
        while not (match := pattern.search(self.text)):
            if not select.select([self.master], [], [], max(0.0, end - time.monotonic()))[0]:
                pytest.fail(f"{words} did not come; there is:\n{self.text}")
            more = os.read(self.master, 65536).decode(errors="replace")
            self.text = ANSI.sub("", self.text + more).replace("\r", "")
        shown, self.text = self.text[: match.end()], self.text[match.end() :]
        return shown

    def type(self, text):
        os.write(self.master, text)

    def close(self):
        if self.process.is_alive():
            os.kill(self.process.pid, signal.SIGTERM)
        self.process.join(PATIENCE)
        os.close(self.slave)
        os.close(self.master)


def run_on_terminal(terminal, arguments, root, environment):
    """The child: a session of its own whose controlling terminal is `terminal`, so that ^C reaches it."""
    os.setsid()
    os.dup2(os.open(terminal, os.O_RDWR), 0)
    warm.run_module("course", arguments, root, root, environment, terminal, terminal)
