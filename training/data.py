"""Text as bytes: the embedded corpus, your own files, windows, loaders, and the bigram baseline.

Run: ``python -m training.data [PATH]`` prints what there is to train on.

The corpus is the documentation inside CPython: `pydoc_data.topics`, and the docstrings of the standard
library. It is 1.6 to 1.8 MB of real technical English on every machine, without a download. Its bytes differ
between Python versions. A token is a byte, so there is no tokenizer and the vocabulary is 256.
"""

from __future__ import annotations

import argparse
import codecs
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from training.corpus import embedded_corpus
from training.regular import open_regular

VOCAB_SIZE = 256
PIECE = 1 << 20  # bytes that are read at once


class DataError(ValueError):
    """The text cannot be used; the message says what, where, and what to do."""


class DataNotFoundError(DataError, FileNotFoundError):
    """The path does not exist."""

    def __str__(self) -> str:
        return str(self.args[0])  # OSError would format its arguments


def load_text(path: str | os.PathLike[str] | None = None) -> Tensor:
    """The bytes of a text.

    Args:
        path: a UTF-8 text file; or a folder, of which all text files (at any depth, in sorted order, hidden
            ones left out) are joined by a newline; or None for the embedded corpus.

    Returns:
        (N,) uint8, N >= 1.

    Raises:
        DataNotFoundError: if the path does not exist.
        DataError: if it is empty, binary or unreadable, no file or folder, or a folder without text files.
    """
    if path is None:
        return _as_tokens(bytearray(embedded_corpus()))
    path = Path(path)
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataNotFoundError(
            f"No such file or folder: {path}; check the path, or leave it out for the corpus."
        ) from error
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}; check the path.") from error
    if path.is_dir():
        text = _read_folder(path)
    elif path.is_file():
        content = _read(path)
        if content is None:
            raise DataError(
                f"Not a text file: {path} has NUL bytes or is not UTF-8; convert it to UTF-8 text."
            )
        text = content
    else:
        raise DataError(f"Neither a file nor a folder: {path}; give a UTF-8 text file or a folder of them.")
    if not text or text.isspace():
        raise DataError(f"Empty text: {path} holds no characters; give a file with some text in it.")
    return _as_tokens(text)


def _as_tokens(text: bytearray) -> Tensor:
    return torch.frombuffer(text, dtype=torch.uint8)  # writable, and owned by the tensor


def _read(path: Path) -> bytearray | None:
    """The bytes of a file; None as soon as they are no UTF-8 text: of a sparse terabyte one piece is read."""
    decoder, text = codecs.getincrementaldecoder("utf-8")(), bytearray()
    try:
        with open_regular(path) as file:
            while piece := file.read(PIECE):
                if b"\0" in piece:
                    return None
                decoder.decode(piece)  # by pieces: decoded at once, a text may need four times its bytes
                text += piece
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return None
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}; check its permissions.") from error
    return text


def _read_folder(folder: Path) -> bytearray:
    texts = [text for text in map(_read, _files(folder)) if text and not text.isspace()]
    if not texts:
        raise DataError(f"No text files: {folder} has no UTF-8 file with text in it; give another folder.")
    return bytearray(b"\n").join(texts)


def _files(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise DataError(f"Cannot read {error.filename}: {error.strerror}; check its permissions.") from error

    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and (Path(root) / name).is_file():
                yield Path(root) / name


def train_val_split(
    tokens: Tensor, val_fraction: float = 0.1, block_size: int = 128
) -> tuple[Tensor, Tensor]:
    """Cut once: the front is for training, the tail for validation.

    No token is in both parts, and since windows are cut from one part each, no window reaches across.

    Args:
        tokens: (N,).
        val_fraction: share of the tail, in (0, 1).
        block_size: T; each part must hold at least one window, which is T + 1 tokens (T inputs, T labels).

    Returns:
        (train, val), two views of tokens.

    Raises:
        DataError: if a part is too short for one window.
        ValueError: if val_fraction or block_size is out of range.
    """
    if not 0.0 < val_fraction < 1.0:
        raise ValueError(f"val_fraction must be in (0, 1), got {val_fraction}")
    if block_size < 1:
        raise ValueError(f"block_size must be >= 1, got {block_size}")
    cut = len(tokens) - round(len(tokens) * val_fraction)
    train, val = tokens[:cut], tokens[cut:]
    for name, part in (("training", train), ("validation", val)):
        if len(part) < block_size + 1:
            raise DataError(
                f"Text too short: {len(tokens)} bytes leave {len(part)} for {name}, and one block of "
                f"{block_size} needs {block_size + 1}; give a longer text or a smaller block_size."
            )
    return train, val


class TokenDataset(Dataset[dict[str, Tensor]]):
    """Windows of block_size tokens, each with the token that follows every one of them.

    ``[i] -> {"input_ids": (T,), "labels": (T,)}``, int64, with labels[t] the token after input_ids[t]: the
    shift happens here, once, and nowhere else.

    Args:
        tokens: (N,) of any integer type, N >= T + 1.
        block_size: T >= 1.
        stride: distance between the starts of two windows, >= 1. None means T: windows do not overlap, and
            every token but the first is a label at most once an epoch.

    Raises:
        ValueError: if block_size or stride is out of range, tokens is not 1-D, or shorter than one window.
    """

    def __init__(self, tokens: Tensor, block_size: int, stride: int | None = None) -> None:
        stride = block_size if stride is None else stride
        if block_size < 1:
            raise ValueError(f"block_size must be >= 1, got {block_size}")
        if stride < 1:
            raise ValueError(f"stride must be >= 1, got {stride}")
        if tokens.dim() != 1:
            raise ValueError(f"tokens must have the shape (N,), got {tuple(tokens.shape)}")
        if len(tokens) < block_size + 1:
            raise DataError(f"tokens must hold at least block_size + 1 = {block_size + 1}, got {len(tokens)}")
        self.tokens = tokens
        self.block_size = block_size
        self.stride = stride

    def __len__(self) -> int:
        return (len(self.tokens) - self.block_size - 1) // self.stride + 1

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"index must be in [0, {len(self)}), got {index}")
        start = index * self.stride
        window = self.tokens[start : start + self.block_size + 1].long()  # (T + 1,)
        return {"input_ids": window[:-1], "labels": window[1:]}


def make_loader(
    dataset: Dataset[dict[str, Tensor]],
    batch_size: int,
    shuffle: bool = False,
    seed: int = 0,
    drop_last: bool = False,
    pin_memory: bool = False,
) -> DataLoader[dict[str, Tensor]]:
    """A DataLoader with a generator of its own.

    Without one, every ``iter(loader)`` draws a seed from the global generator, also when it does not shuffle:
    then dropout depends on how often somebody evaluates.

    Args:
        dataset: what to load.
        batch_size: windows in a micro-batch, >= 1. The last batch may be smaller.
        shuffle: a new order each epoch.
        seed: the orders of two loaders with the same seed are the same.
        drop_last: leave an incomplete last batch out.
        pin_memory: copy batches to page-locked memory, for a faster copy to a GPU.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, got {batch_size}")
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle,
        drop_last=drop_last,
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(seed),
    )


def bigram_loss(train: Tensor, val: Tensor, alpha: float = 0.05) -> float:
    r"""Loss on val of the byte bigram model counted on train: what a network has to beat.

    $P(b \mid a) = (n_{ab} + \alpha) / (\sum_{b'} n_{ab'} + 256\,\alpha)$, and the loss is the mean of
    $-\ln P$ over the neighbours in val, in nats a token.

    Args:
        train: (N,) bytes, N >= 2.
        val: (M,) bytes, M >= 2.
        alpha: what every pair is given in advance, > 0. The default is near the best for texts of 0.1-10 MB
            (a larger one wastes probability on bytes that never occur): the baseline is not a straw man.
    """
    if alpha <= 0:
        raise ValueError(f"alpha must be > 0, got {alpha}")
    if len(train) < 2 or len(val) < 2:
        raise ValueError(f"train and val must hold at least 2 tokens, got {len(train)} and {len(val)}")

    def pairs(tokens: Tensor) -> Tensor:
        return tokens[:-1].long() * VOCAB_SIZE + tokens[1:].long()

    counts = (
        torch.bincount(pairs(train), minlength=VOCAB_SIZE**2).double().view(VOCAB_SIZE, VOCAB_SIZE) + alpha
    )
    log_probs = (counts / counts.sum(dim=1, keepdim=True)).log()
    return -log_probs.flatten()[pairs(val)].mean().item()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.data", description="Show a text to train on.")
    parser.add_argument("path", nargs="?", help="a text file or a folder (default: the embedded corpus)")
    path = parser.parse_args(argv).path
    try:
        tokens = load_text(path)
        train, val = train_val_split(tokens)
    except DataError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"source          {path or 'documentation of CPython ' + sys.version.split()[0]}")
    print(f"bytes           {len(tokens):,}")
    print(f"distinct bytes  {len(tokens.unique())}")
    print(f"train tokens    {len(train):,}")
    print(f"val tokens      {len(val):,}")
    print(f"bigram loss     {bigram_loss(train, val):.3f} nats a byte")
    return 0


if __name__ == "__main__":
    sys.exit(main())
