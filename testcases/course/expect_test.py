"""The comparisons that lesson tests use: what they accept, what they refuse, and what they say."""

import math

import pytest
import torch

from course import lang
from course.expect import Expect, Mismatch
from course.recorder import Recorder, summarize

nan, inf = math.nan, math.inf


@pytest.fixture
def expect():
    lang.choose("en")
    return Expect(Recorder(True, []))


@pytest.mark.parametrize(
    ("got", "want"),
    [
        (torch.tensor([1.0, nan]), torch.tensor([1.0, nan])),
        (torch.tensor(2), 2),
        (2.0, torch.tensor([2.0])),
        (nan, nan),
        ((1, [2.0]), [1, (2.0,)]),
        ({"a": torch.ones(2), "b": None}, {"b": None, "a": torch.ones(2)}),
        (True, True),
        ("x", "x"),
    ],
)
def test_equal_accepts_equal_values(expect, got, want):
    expect.equal("x", got, want, source="test")


@pytest.mark.parametrize(
    ("got", "want"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0000002])),
        (torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64)),
        (torch.ones(2, 1), torch.ones(1, 2)),
        (torch.tensor([nan]), torch.tensor([1.0])),
        (torch.tensor([1.0]), torch.tensor([nan])),
        (torch.tensor([inf]), torch.tensor([-inf])),
        (nan, 1.0),
        (1.0, nan),
        (inf, 1.0),
        (None, torch.ones(1)),
        (None, 1.0),
        (1.0, None),
        (True, 1),
        ([1, 2], [1, 2, 3]),
        ({"a": 1}, {"a": 1, "b": 2}),
        ({"a": 1, "b": 2}, {"a": 1}),
        ({"a": [1, 2]}, {"a": [1, 3]}),
        ("x", "y"),
    ],
)
def test_equal_refuses_different_values(expect, got, want):
    with pytest.raises(Mismatch):
        expect.equal("x", got, want, source="test")


def test_message_names_expected_source_got_and_the_first_difference(expect):
    with pytest.raises(Mismatch) as caught:
        expect.equal(
            "weights",
            torch.tensor([[1.0, 2.5]]),
            torch.tensor([[1.0, 2.0]]),
            source="torch.optim.SGD",
            step=3,
        )
    rows = dict(caught.value.lines())
    assert rows["compared"] == "weights, step 3"
    assert rows["expected"].startswith("[1, 2]")
    assert rows["from"] == "torch.optim.SGD"
    assert rows["got"].startswith("[1, 2.5]")
    assert rows["differs"].startswith("first at [0, 1]: expected 2, got 2.5; 1 of 2 elements differ")


def test_message_names_the_place_inside_a_structure(expect):
    with pytest.raises(Mismatch) as caught:
        expect.equal("state", {"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}, source="test")
    assert dict(caught.value.lines())["compared"] == "state['a'][1]['b']"


def test_close_uses_its_tolerance_and_says_why(expect):
    expect.close("x", 1.0 + 1e-8, 1.0, source="test", atol=1e-7, because="rounding")
    expect.close(
        "x", torch.tensor([100.1]), torch.tensor([100.0]), source="test", atol=0, rtol=0.01, because="r"
    )
    with pytest.raises(Mismatch, match="tolerance 1e-07: rounding"):
        expect.close("x", 1.0 + 1e-6, 1.0, source="test", atol=1e-7, because="rounding")
    with pytest.raises(Mismatch):
        expect.close("x", torch.tensor([nan]), torch.tensor([1.0]), source="test", atol=inf, because="r")


def test_raises_asks_for_type_and_text(expect):
    with expect.raises(ValueError, match="-1", source="doc"):
        raise ValueError("got -1")
    for error in (TypeError("got -1"), ValueError("got 2")):
        with pytest.raises(Mismatch), expect.raises(ValueError, match="-1", source="doc"):
            raise error
    another = Expect(Recorder(True, []))
    with pytest.raises(Mismatch, match="no error"), another.raises(ValueError, source="doc"):
        pass


def test_raises_lets_an_unwritten_task_through(expect):
    with pytest.raises(NotImplementedError, match=r"task 1\.1"), expect.raises(RuntimeError, source="doc"):
        raise NotImplementedError("task 1.1: write it")


def test_true_shows_both_sides(expect):
    expect.true("loss falls", True, expected="below 2", got=1)
    with pytest.raises(Mismatch) as caught:
        expect.true("loss falls", False, expected="below 2", got=3.5)
    assert (caught.value.expected, caught.value.got) == ("below 2", "3.5")


def test_every_comparison_is_recorded_step_by_step():
    recorder = Recorder(True, [])
    expect = Expect(recorder)
    for step in range(3):
        expect.equal("x", torch.tensor([float(step)]), torch.tensor([float(step)]), source="test", step=step)
    assert recorder.rows == [{"name": "x", "step": step, "value": [float(step)]} for step in range(3)]


def test_summary_of_a_value_survives_json():
    import json

    value = {
        "small": torch.tensor([nan, inf]),
        "large": torch.arange(100.0),
        "other": [1, None, "s", object()],
    }
    table = json.loads(json.dumps(summarize(value), allow_nan=False))
    assert table["small"] == ["nan", "inf"]
    assert table["large"]["shape"] == [100]
    assert table["large"]["sum"] == 4950
    assert table["other"][3] == "object"


def test_chinese_labels():
    lang.choose("zh")
    try:
        assert [label for label, _ in Mismatch("x", "1", "2", "公式", 3).lines()] == [
            "比较",
            "期望",
            "依据",
            "得到",
        ]
    finally:
        lang.choose("en")
