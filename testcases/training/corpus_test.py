"""Tests of training/corpus.py, and of load_text() without a path."""

import logging
import os
import random
from pathlib import Path

import pytest
import torch

from training import corpus
from training.data import load_text


def test_corpus_is_about_a_megabyte_of_ascii_and_is_read_from_the_cache_the_second_time(monkeypatch):
    tokens = load_text()
    assert tokens.dtype == torch.uint8
    assert tokens.dim() == 1
    assert 1_000_000 < len(tokens) < 3_000_000
    assert int(tokens.max()) < 128
    assert b"context manager" in bytes(tokens.tolist())
    assert corpus.cache_path().is_file()
    monkeypatch.setattr(corpus, "stdlib_docstrings", lambda: pytest.fail("extracted again"))
    assert torch.equal(load_text(), tokens)


@pytest.fixture
def small_corpus(tmp_path, monkeypatch):
    """A corpus of two short texts and an empty cache, so that a rebuild takes no time."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    monkeypatch.setattr(corpus, "topics", lambda: ["a topic"])
    monkeypatch.setattr(corpus, "stdlib_docstrings", lambda: iter(["a docstring"]))
    return corpus.assemble(["a topic", "a docstring"])


def test_corpus_does_not_depend_on_the_order_of_the_files():
    texts = [f"text {i}" for i in range(50)] + ["text 3", "café\n"]
    shuffled = random.Random(0).sample(texts, len(texts))
    assert corpus.assemble(texts) == corpus.assemble(shuffled)
    assert corpus.assemble(texts).count(b"text 3\n") == 1, "a text that is there twice is kept once"
    assert b"caf\n" in corpus.assemble(texts), "what is not ASCII is left out"


def test_docstrings_are_found_without_importing(tmp_path):
    text = "what the module does " * 10
    files = {
        "good.py": f'"""{text}module"""\nimport antigravity\nraise SystemExit\n'
        f'class C:\n    """{text}class"""\n    async def f(self):\n        """{text}function"""\n',
        "short.py": '"""Too short."""',
        "broken.py": f'"""{text}broken"""\ndef (',
        "notes.txt": text,
        "test/test_it.py": f'"""{text}test"""',
        "site-packages/other.py": f'"""{text}other"""',
        "package/inner.py": f'"""{text}inner"""',
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    found = sorted(docstring.removeprefix(text) for docstring in corpus.stdlib_docstrings(tmp_path))
    assert found == ["class", "function", "inner", "module"]


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-3], lambda raw: raw.replace(b"topic", b"tonic"), lambda raw: b""]
)
def test_broken_cache_is_rebuilt(small_corpus, damage):
    assert corpus.embedded_corpus() == small_corpus
    path = corpus.cache_path()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert corpus.embedded_corpus() == small_corpus
    assert path.read_bytes() == whole


def test_cache_that_is_a_folder_or_below_a_file_does_not_break_the_run(small_corpus, tmp_path, monkeypatch):
    corpus.cache_path().mkdir(parents=True)
    assert corpus.embedded_corpus() == small_corpus
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "file"))
    assert corpus.embedded_corpus() == small_corpus


def test_cache_write_that_fails_halfway_leaves_nothing_behind(small_corpus, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    assert corpus.embedded_corpus() == small_corpus
    assert list(corpus.cache_path().parent.iterdir()) == []


def test_missing_library_sources_leave_the_topics_and_a_note_and_are_not_cached(
    small_corpus, monkeypatch, caplog
):
    monkeypatch.setattr(corpus, "stdlib_docstrings", lambda: iter([]))
    with caplog.at_level(logging.WARNING):
        assert corpus.embedded_corpus() == corpus.assemble(["a topic"])
    assert "sources are missing" in caplog.text
    assert not corpus.cache_path().exists()


def test_cache_is_named_after_the_python_version_and_needs_an_absolute_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus.sys, "platform", "linux")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for ignored in ("", "relative/folder"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert corpus.cache_path().parent == tmp_path / ".cache" / "trainer-from-scratch"
    first = corpus.cache_path()
    monkeypatch.setattr(corpus.sys, "version_info", (3, 99, 1))
    assert corpus.cache_path() != first

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert corpus.cache_path() is None
