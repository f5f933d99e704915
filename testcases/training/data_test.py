"""Tests of training/data.py."""

import math
import os
from pathlib import Path

import pytest
import torch

from training import data
from training.data import (
    DataError,
    TokenDataset,
    bigram_loss,
    load_text,
    make_loader,
    train_val_split,
)


def as_bytes(tokens: torch.Tensor) -> bytes:
    return bytes(tokens.tolist())


# ---- files and folders


def test_folder_is_read_in_sorted_order_at_any_depth_without_binary_and_hidden_files(tmp_path):
    files = {
        "b.md": b"second",
        "a.txt": b"first",
        "sub/c": "third é".encode(),
        "z.bin": b"\0\1",
        "latin.txt": b"\xe9",
    }
    hidden = {".git/config": b"hidden", ".notes": b"hidden", "empty.txt": b""}
    for name, content in (files | hidden).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert as_bytes(load_text(tmp_path)) == "first\nsecond\nthird é".encode()


def test_folder_order_does_not_hang_on_the_file_system(tmp_path):
    names = list("cahfbgde")  # neither the order of creation nor its reverse is sorted
    for folder in names:
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).write_text(folder + name)
    want = "\n".join(folder + name for folder in sorted(names) for name in sorted(names))
    assert as_bytes(load_text(tmp_path)).decode() == want


def test_file_is_read_byte_for_byte(tmp_path):
    path = tmp_path / "text"
    path.write_bytes("naïve\r\n\tend".encode())
    assert as_bytes(load_text(path)) == "naïve\r\n\tend".encode()
    assert torch.equal(load_text(str(path)), load_text(path))


def make_bad_input(kind: str, folder: Path) -> Path:
    path = folder / "input"
    if kind == "empty":
        path.write_bytes(b" \n")
    elif kind == "nul":
        path.write_bytes(b"text\0text")
    elif kind == "latin-1":
        path.write_bytes("naïve".encode("latin-1"))
    elif kind == "folder":
        path.mkdir()
        (path / "image.png").write_bytes(b"\x89PNG\0")
    elif kind == "special":
        os.mkfifo(path)
    return path


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("missing", "No such file or folder: {}; check the path, or leave it out for the corpus."),
        ("empty", "Empty text: {} holds no characters; give a file with some text in it."),
        ("nul", "Not a text file: {} has NUL bytes or is not UTF-8; convert it to UTF-8 text."),
        ("latin-1", "Not a text file: {} has NUL bytes or is not UTF-8; convert it to UTF-8 text."),
        ("folder", "No text files: {} has no UTF-8 file with text in it; give another folder."),
        pytest.param(
            "special",
            "Neither a file nor a folder: {}; give a UTF-8 text file or a folder of them.",
            marks=pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here"),
        ),
    ],
)
def test_bad_input_is_refused_in_one_sentence(tmp_path, kind, sentence):
    path = make_bad_input(kind, tmp_path)
    with pytest.raises(DataError) as caught:
        load_text(path)
    assert str(caught.value) == sentence.format(path)
    assert isinstance(caught.value, FileNotFoundError) == (kind == "missing")


def test_unreadable_file_and_folder_are_refused_in_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("text")

    def denied(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr("training.data.open_regular", denied)  # file modes do not bind root
        for path in (tmp_path, tmp_path / "text.txt"):
            with pytest.raises(
                DataError, match=r"^Cannot read .*text.txt: Permission denied; check its permissions\.$"
            ):
                load_text(path)

    def denied_scan(path: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", denied_scan)
    with pytest.raises(DataError, match=r"^Cannot read .*: Permission denied"):
        load_text(tmp_path)


# ---- split, windows, loaders


def test_split_is_contiguous_and_shares_no_token_not_even_through_a_window():
    tokens = torch.arange(1000)
    train, val = train_val_split(tokens, val_fraction=0.2, block_size=10)
    assert torch.equal(torch.cat((train, val)), tokens)
    assert len(val) == 200

    def seen(part: torch.Tensor) -> set[int]:
        dataset = TokenDataset(part, 10)
        return {int(t) for i in range(len(dataset)) for window in dataset[i].values() for t in window}

    assert seen(train).isdisjoint(seen(val))
    assert max(seen(train)) < min(seen(val))


@pytest.mark.parametrize(("length", "fraction", "name"), [(109, 0.1, "validation"), (100, 0.95, "training")])
def test_split_too_short_for_one_block_says_which_part_and_how_much_it_needs(length, fraction, name):
    with pytest.raises(DataError, match=rf"Text too short: {length} bytes leave \d+ for {name}.*needs 12;"):
        train_val_split(torch.zeros(length), fraction, block_size=11)


def test_split_just_long_enough_is_accepted():
    train, val = train_val_split(torch.zeros(120), 0.1, block_size=11)
    assert (len(train), len(val)) == (108, 12)
    assert len(TokenDataset(val, 11)) == 1


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_split_refuses_a_bad_fraction_and_block(fraction):
    with pytest.raises(ValueError, match="val_fraction must be in"):
        train_val_split(torch.zeros(1000), fraction)
    with pytest.raises(ValueError, match="block_size must be >= 1, got 0"):
        train_val_split(torch.zeros(1000), block_size=0)


def test_labels_are_the_next_tokens():
    window = TokenDataset(torch.tensor([7, 8, 9, 10, 11], dtype=torch.uint8), block_size=3)[0]
    assert window["input_ids"].tolist() == [7, 8, 9]
    assert window["labels"].tolist() == [8, 9, 10]
    assert {tensor.dtype for tensor in window.values()} == {torch.int64}


@pytest.mark.parametrize(("length", "windows"), [(4, 1), (6, 1), (7, 2), (10, 3), (12, 3), (13, 4)])
def test_windows_do_not_overlap_and_the_last_whole_one_is_used(length, windows):
    dataset = TokenDataset(torch.arange(length), block_size=3)
    assert len(dataset) == windows
    labels = torch.cat([dataset[i]["labels"] for i in range(windows)])
    assert labels.tolist() == list(range(1, 3 * windows + 1)), "every token once a label, in order"


def test_stride_sets_the_distance_of_the_windows():
    dataset = TokenDataset(torch.arange(10), block_size=4, stride=2)
    assert [dataset[i]["input_ids"][0].item() for i in range(len(dataset))] == [0, 2, 4]
    assert dataset[2]["labels"].tolist() == [5, 6, 7, 8]


@pytest.mark.parametrize("index", [-1, 3])
def test_window_outside_is_an_index_error_so_that_iteration_ends(index):
    dataset = TokenDataset(torch.arange(10), block_size=3)
    with pytest.raises(IndexError, match=rf"\[0, 3\), got {index}"):
        dataset[index]
    assert len(list(dataset)) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(5), 0), "block_size must be >= 1, got 0"),
        ((torch.zeros(5), 2, 0), "stride must be >= 1, got 0"),
        ((torch.zeros(5, 5), 2), r"tokens must have the shape \(N,\), got \(5, 5\)"),
        ((torch.zeros(5), 5), "at least block_size . 1 = 6, got 5"),
    ],
)
def test_dataset_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        TokenDataset(*arguments)


@pytest.mark.parametrize("shuffle", [False, True])
def test_loader_leaves_the_global_generator_alone(shuffle):
    loader = make_loader(TokenDataset(torch.arange(100), 4), batch_size=8, shuffle=shuffle)
    state = torch.get_rng_state()
    assert [len(batch["labels"]) for batch in loader] == [8, 8, 8]
    assert torch.equal(torch.get_rng_state(), state)


def test_loader_shuffles_anew_each_epoch_and_repeats_with_its_seed():
    def epochs(seed: int) -> list[list[int]]:
        loader = make_loader(TokenDataset(torch.arange(101), 1), batch_size=7, shuffle=True, seed=seed)
        return [torch.cat([batch["input_ids"] for batch in loader]).flatten().tolist() for _ in range(2)]

    first, second = epochs(3)
    assert first != second
    assert sorted(first) == sorted(second) == list(range(100))
    torch.rand(10)  # whatever others draw
    assert epochs(3) == [first, second]
    assert epochs(4) != [first, second]


def test_loader_keeps_the_last_small_batch_unless_told():
    dataset = TokenDataset(torch.arange(11), 1)
    assert [len(batch["labels"]) for batch in make_loader(dataset, 4)] == [4, 4, 2]
    assert [len(batch["labels"]) for batch in make_loader(dataset, 4, drop_last=True)] == [4, 4]
    with pytest.raises(ValueError, match="batch_size must be >= 1, got 0"):
        make_loader(dataset, 0)


# ---- the baseline


def test_bigram_loss_equals_the_count_by_hand():
    train, val = torch.tensor(list(b"abab a")), torch.tensor(list(b"abz"))
    # train: a→b twice, b→a once, b→space once, space→a once. val: a→b, then b→z, which was never seen.
    seen, unseen = (2 + 0.5) / (2 + 256 * 0.5), 0.5 / (2 + 256 * 0.5)
    assert bigram_loss(train, val, alpha=0.5) == pytest.approx(
        -(math.log(seen) + math.log(unseen)) / 2, rel=1e-12
    )


def test_default_alpha_is_near_the_best_on_the_corpus():
    train, val = train_val_split(load_text())
    default = bigram_loss(train, val)
    assert 2.0 < default < 3.0
    assert default < min(bigram_loss(train, val, alpha) for alpha in (1e-3, 1.0)), (
        "the baseline is no straw man"
    )


@pytest.mark.parametrize(("val", "alpha"), [(b"ab", 0.0), (b"a", 0.1)])
def test_bigram_loss_refuses_alpha_zero_and_a_text_without_pairs(val, alpha):
    with pytest.raises(ValueError, match="must"):
        bigram_loss(torch.tensor(list(b"abab")), torch.tensor(list(val)), alpha)


# ---- python -m training.data


def test_command_prints_what_there_is_to_train_on(small_file, capsys):
    assert data.main([str(small_file)]) == 0
    out = capsys.readouterr().out
    train, val = train_val_split(load_text(small_file))
    assert out.splitlines() == [
        f"source          {small_file}",
        "bytes           3,080",
        f"distinct bytes  {len(set(small_file.read_bytes()))}",
        "train tokens    2,772",
        "val tokens      308",
        f"bigram loss     {bigram_loss(train, val):.3f} nats a byte",
    ]


def test_command_says_what_is_wrong_and_exits_with_2(tmp_path, capsys):
    assert data.main([str(tmp_path / "missing")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("No such file or folder: ")
    assert captured.err.count("\n") == 1
