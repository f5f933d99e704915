"""docs/five_sessions.md shows what is printed today: every session is played again, in both languages."""

from pathlib import Path

import pytest

from testcases.course import sessions
from testcases.course.conftest import ToyRepo


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, server) -> ToyRepo:
    """A copy of the course to make mistakes in."""
    root: Path = tmp_path_factory.mktemp("sessions") / "repo"
    sessions.prepare(root)
    return ToyRepo(root, server)


def test_page_has_every_session_in_both_languages():
    for lang, path in sessions.PAGES.items():
        shown = sessions.blocks(path.read_text(encoding="utf-8"))
        assert list(shown) == [s.name for s in sessions.SESSIONS], lang


@pytest.mark.parametrize("lang", sessions.PAGES)
@pytest.mark.parametrize("session", sessions.SESSIONS, ids=lambda session: session.name)
def test_page_shows_what_pytest_prints(finished, session, lang):
    shown = sessions.blocks(sessions.PAGES[lang].read_text(encoding="utf-8"))[session.name]
    printed = sessions.play(session, lang, finished.root, lambda args: finished.pytest(*args).out)
    assert printed == shown, "run `python -m testcases.course.sessions`"
    for name in session.mistakes:
        assert f"  {name} · " in printed
    assert session.mistakes or ("No diagnosis" if lang == "en" else "没有诊断") in printed
