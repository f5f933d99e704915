"""Bad inputs, first part: configurations, texts and output folders. Used by bad_inputs.py."""

# ruff: noqa: E501 (one input a line)
from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from testcases.torture.bad_files import TEXT, Case, Place
from training.durable import digest_path

BIG = 100_000_000  # bytes

# ---- configurations


def yaml(content: str | bytes, *flags: str) -> Callable[[Place], list[str]]:
    """`--config bad.yaml` with this content, and flags."""

    def prepared(place: Place) -> list[str]:
        path = place.folder / "bad.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return place.pretrain("--config", str(path), *flags)

    return prepared


def flags(*words: str) -> Callable[[Place], list[str]]:
    return lambda place: place.pretrain(*words)


def config_at(prepare: Callable[[Path], object]) -> Callable[[Place], list[str]]:
    """`--config bad.yaml`, where that is no regular file."""

    def prepared(place: Place) -> list[str]:
        prepare(place.folder / "bad.yaml")
        return place.pretrain("--config", str(place.folder / "bad.yaml"))

    return prepared


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
# every value is that of a field, so that the reader has to say what is wrong with it
LAUGHING_LR = "lr:\n  - &a0 [x, x]\n" + "".join(f"  - &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))

CONFIGURATIONS: list[tuple[str, Callable[[Place], list[str]], str]] = [
    ("an unknown key", yaml("lr: 0.1\nbatchsize: 3\n"), "did you mean 'batch_size'?"),
    ("a list", yaml("- lr: 0.1\n"), "list"),
    ("a number", yaml("3\n"), "int"),
    ("a key twice", yaml("lr: 0.1\nseed: 1\nlr: 0.2\n"), "twice, again in line 3"),
    ("a key that is a list", yaml("? [a, b]\n: 1\n"), "no name of a field"),
    ("a key that is a number", yaml("7: 1\n"), "no name of a field"),
    ("a merge key", yaml("<<: {lr: 0.1}\n"), "bad.yaml, line 1"),
    ("a tab", yaml("lr:\n\t0.1\n"), "line 2"),
    ("a bracket that stays open", yaml("lr: [1, 2\n"), "bad.yaml"),
    ("two documents", yaml("lr: 0.1\n---\nlr: 0.2\n"), "bad.yaml"),
    ("an anchor that is nowhere", yaml("lr: *gone\n"), "gone"),
    ("lists that are 2^40 lists", yaml(LAUGHS), "a0"),
    ("2^40 lists as a learning rate", yaml(LAUGHING_LR), "lr must be a number"),
    ("a list that holds itself", yaml("lr: &a [*a]\n"), "bad.yaml, line 1"),
    ("brackets 20,000 deep", yaml("lr: " + "[" * 20_000 + "]" * 20_000), "deep"),
    ("brackets 20,000 deep, in a flag", flags("--lr", "[" * 20_000 + "]" * 20_000), "lr must be a number"),
    ("brackets 20,000 deep, as a path", flags("--output_dir", "[" * 20_000), "output_dir must be"),
    ("lists of lists, in a flag", flags("--output_dir", "[&a [x, x], &b [*a, *a], &c [*b, *b]]", "--lr", "&a [*a]"), "lr must be a number"),
    ("a tag that runs code", yaml("lr: !!python/object/apply:os.system ['touch RAN']\n"), "python/object/apply"),
    ("a tag that names a type", yaml("lr: !!python/name:os.system\n"), "python/name"),
    ("bytes that are not UTF-8", yaml(b"lr: 0.1 # caf\xe9\n"), "not UTF-8"),
    ("UTF-16", yaml("lr: 0.1\n".encode("utf-16")), "not UTF-8"),
    ("a NUL byte", yaml("lr: 0.1\0\n"), "bad.yaml"),
    ("a picture", yaml(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9), "not UTF-8"),
    ("100 MB", lambda place: yaml(b"lr: 0.1\n" * (BIG // 8))(place), "larger than"),
    ("text where a number belongs", yaml("lr: fast\n"), "lr must be a number, got 'fast'"),
    ("a list where a number belongs", yaml("batch_size: [1, 2]\n"), "batch_size must be an integer"),
    ("a fraction where an integer belongs", yaml("batch_size: 1.5\n"), "batch_size must be an integer"),
    ("a date where a number belongs", yaml("lr: 2026-01-31\n"), "lr must be a number"),
    ("a date that does not exist", yaml("lr: 2026-99-99\n"), "bad.yaml"),
    ("true where a number belongs", yaml("max_steps: true\n"), "max_steps"),
    ("a number where true belongs", yaml("use_amp: 1\n"), "use_amp must be true or false"),
    ("null where a number belongs", yaml("lr:\n"), "lr must be a number, got null"),
    ("an integer of 400 digits as a number", yaml("lr: 1" + "0" * 400 + "\n"), "lr must be"),
    ("an integer of 5,000 digits", yaml("seed: 1" + "0" * 5000 + "\n"), "bad.yaml"),
    ("an integer of 40,000 binary digits", yaml("seed: 0x" + "f" * 10_000 + "\n"), "seed must be"),
    ("a text of 60 kB as a number", yaml("lr: " + "x" * 60_000 + "\n"), "lr must be a number"),
    ("60 kB of keys", yaml("".join(f"k{number:x}:\n" for number in range(8_000))), "unknown key 'k0'"),
    ("a NUL in a path", yaml('save_interval: 3\nresume: "a\\0b"\n'), "resume must be"),
    ("a path of two lines", flags("--data", "no\nsuch"), "data must be"),
    ("a path with half a character", flags("--data", "a\udc80b"), "data must be"),
    ("a path that clears the screen", flags("--resume", "\x1b[2J.pt"), "resume must be"),
    ("an integer of 400 digits as a number, in a flag", flags("--lr", "1" + "0" * 400), "lr must be"),
    ("an integer of 5,000 digits, in a flag", flags("--seed", "1" + "0" * 5000), "seed must be"),
    ("NaN", flags("--lr", "nan"), "lr must be"),
    ("NaN, as YAML has it", flags("--lr", ".nan"), "lr must be finite"),
    ("infinity", yaml("weight_decay: .inf\n"), "weight_decay must be finite"),
    ("infinity by overflow", flags("--lr", "1e999"), "lr must be finite"),
    ("a negative number", flags("--batch_size", "-1"), "batch_size must be >= 1"),
    ("a model of 10^18 weights", flags("--n_embd", "1000000000", "--n_head", "1"), "n_embd"),
    ("a million blocks", flags("--n_layer", "1000000"), "n_layer"),
    ("10^12 threads", flags("--threads", "1000000000000"), "threads must be <= 1024"),
    ("heads that do not divide the width", flags("--n_head", "3"), "n_embd must be divisible by n_head"),
    ("a longer warmup than run", flags("--warmup_steps", "9"), "warmup_steps must be in [0, max_steps=4]"),
    ("an unknown optimizer", flags("--optimizer", "adanw"), "did you mean 'adamw'?"),
    ("a device that is not there", flags("--device", "cuda:99"), "cuda:99"),
    ("a flag without a value", flags("--lr"), "--lr needs a value"),
    ("an unknown flag", flags("--learning-rate", "1"), "unknown flag --learning-rate"),
    ("a word that belongs to no flag", flags("0.1"), "0.1"),
    ("an option twice, once wrong", flags("--lr", "0.1", "--lr", "x"), "lr must be a number, got 'x'"),
    ("--config without a path", flags("--config"), "--config needs the path"),
    ("--resume without a value", flags("--resume"), "--resume needs a value"),
    ("--reset_optimizer without --resume", flags("--reset_optimizer"), "--reset_optimizer needs"),
    ("a command that does not exist", lambda place: ["pretrian"], "pretrian"),
    ("no command", lambda place: [], "COMMAND"),
    ("a file that is not there", lambda place: place.pretrain("--config", "no/such.yaml"), "no/such.yaml"),
    ("a folder", config_at(Path.mkdir), "bad.yaml"),
    ("a FIFO", config_at(os.mkfifo), "bad.yaml: Not a regular file"),
    ("a device without end", config_at(lambda path: path.symlink_to("/dev/zero")), "bad.yaml: Not a regular file"),
    ("a link to itself", config_at(lambda path: path.symlink_to("bad.yaml")), "symbolic links"),
]  # fmt: skip

# ---- texts


def data(prepare: Callable[[Path], object], *more: str) -> Callable[[Place], list[str]]:
    """`--data bad.txt`, which `prepare` makes."""

    def prepared(place: Place) -> list[str]:
        path = place.folder / "bad.txt"
        prepare(path)
        return place.pretrain("--data", str(path), *more)

    return prepared


def holds(content: str | bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


def holey(size: int) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        with open(path, "wb") as file:
            file.truncate(size)

    return make


def folder_of(**files: bytes) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        path.mkdir()
        for name, content in files.items():
            (path / name).write_bytes(content)

    return make


def folder_of_a_fifo(path: Path) -> None:
    path.mkdir()
    os.mkfifo(path / "pipe.txt")
    (path / "zero.txt").symlink_to("/dev/zero")


def emoji_and_then_none(path: Path) -> None:
    """A decoder that keeps its text in memory needs four bytes for each letter of this."""
    path.write_bytes("🙂".encode() + b"a" * BIG + b"\xff")


DATA: list[tuple[str, Callable[[Place], list[str]], str]] = [
    ("not there", flags("--data", "no/such.txt"), "No such file or folder: no/such.txt"),
    ("empty", data(Path.touch), "Empty text"),
    ("white space", data(holds(" \n" * 5000)), "Empty text"),
    ("a picture", data(holds(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 99)), "Not a text file"),
    ("a NUL byte at the end", data(holds(TEXT + "\0")), "Not a text file"),
    ("Latin-1", data(holds(TEXT.encode() + b"caf\xe9 ")), "Not a text file"),
    ("a character cut in half at the end", data(holds(TEXT.encode() + "é".encode()[:1])), "Not a text file"),
    ("shorter than a block", data(holds("short")), "Text too short"),
    ("a block longer than the text", flags("--block_size", "4000"), "Text too short"),
    ("an empty folder", data(Path.mkdir), "No text files"),
    ("a folder of pictures", data(folder_of(a=b"\x89PNG\0", b=bytes(99))), "No text files"),
    ("a folder of pipes and devices", data(folder_of_a_fifo), "No text files"),
    ("a FIFO", data(os.mkfifo), "Neither a file nor a folder"),
    ("a device without end", data(lambda path: path.symlink_to("/dev/zero")), "Neither a file nor a folder"),
    ("a link to nothing", data(lambda path: path.symlink_to("gone")), "No such file"),
    ("a link to itself", data(lambda path: path.symlink_to("bad.txt")), "bad.txt"),
    ("100 MB of text, then a byte that is none", data(emoji_and_then_none), "Not a text file"),
    ("a terabyte of nothing", data(holey(2**40)), "Not a text file"),
    ("a folder with a terabyte of nothing", data(lambda path: (path.mkdir(), holey(2**40)(path / "a"))), "No text files"),
    ("a name of 5,000 letters", flags("--data", "x" * 5000), "data must be"),
    ("a name of 300 letters", flags("--data", "x" * 300), "too long"),
    ("no name", flags("--data", ""), "data must be"),
    ("what the system does not let anybody read", flags("--data", "/proc/self/mem"), "/proc/self/mem"),
]  # fmt: skip

# ---- output folders


def output(prepare: Callable[[Path], object], *more: str) -> Callable[[Place], list[str]]:
    """`--output_dir out`, which `prepare` makes."""

    def prepared(place: Place) -> list[str]:
        path = place.folder / "out"
        prepare(path)
        return place.pretrain("--output_dir", str(path), *more)

    return prepared


def folder_with_a_folder_named(name: str) -> Callable[[Path], object]:
    return lambda path: (path / name).mkdir(parents=True)


def resumed_run(prepare: Callable[[Path], object]) -> Callable[[Place], list[str]]:
    """A copy of the good run, spoilt, and gone on with."""

    def prepared(place: Place) -> list[str]:
        path = place.folder / "out"
        shutil.copytree(place.run, path)
        prepare(path)
        return place.pretrain("--output_dir", str(path), "--resume", "auto")

    return prepared


def metrics_are_a_folder(path: Path) -> None:
    (path / "metrics.jsonl").unlink()
    (path / "metrics.jsonl").mkdir()


def every_checkpoint_damaged(path: Path) -> None:
    for checkpoint in path.glob("*.pt"):
        os.truncate(checkpoint, 999)


def every_checkpoint_unsafe(path: Path) -> None:
    from testcases.torture.bad_checkpoints import CODE
    from testcases.torture.bad_files import archive, pickled

    for checkpoint in path.glob("*.pt"):
        digest_path(checkpoint).unlink()
        archive(checkpoint, pickled({"x": CODE}))


OUTPUT: list[tuple[str, Callable[[Place], list[str]], str]] = [
    ("a file", output(Path.touch), "Cannot write to"),
    ("below a file", output(Path.touch, "--output_dir", "out/below"), "Cannot write to"),
    ("a link to nothing", output(lambda path: path.symlink_to("gone/far")), "Cannot write to"),
    ("a link to itself", output(lambda path: path.symlink_to("out")), "Cannot write to"),
    ("a device", flags("--output_dir", "/dev/null"), "Cannot write to /dev/null"),
    ("where nobody may write", flags("--output_dir", "/proc/self/out"), "Cannot write to /proc/self/out"),
    ("a name of 300 letters", flags("--output_dir", "x" * 300), "too long"),
    ("no name", flags("--output_dir", ""), "output_dir must be"),
    ("another run's", lambda place: place.pretrain("--output_dir", str(place.run)), "an earlier run"),
    ("a config.yaml that is a folder", output(folder_with_a_folder_named("config.yaml")), "Cannot write to"),
    ("a metrics.jsonl that is a folder", output(folder_with_a_folder_named("metrics.jsonl")), "Cannot write to"),
    ("a metrics.jsonl that is a FIFO", output(lambda path: (path.mkdir(), os.mkfifo(path / "metrics.jsonl"))), "Cannot write to"),
    ("a run whose metrics.jsonl is a folder", resumed_run(metrics_are_a_folder), "Cannot"),
    ("--resume auto, all checkpoints damaged", resumed_run(every_checkpoint_damaged), "There is no good checkpoint"),
    ("--resume auto, all checkpoints unsafe", resumed_run(every_checkpoint_unsafe), "There is no good checkpoint"),
    ("--resume auto, of another model", lambda place: place.pretrain("--output_dir", str(place.run), "--resume", "auto", "--n_embd", "32"), "does not fit"),
    ("--reset_optimizer, without a checkpoint", flags("--resume", "auto", "--reset_optimizer"), "--reset_optimizer needs"),
]  # fmt: skip


def cases() -> list[Case]:
    found = []
    for kind, table in (("configuration", CONFIGURATIONS), ("data", DATA), ("output folder", OUTPUT)):
        found += [Case(kind, name, make, says, slow=name == "100 MB") for name, make, says in table]
    picked = {"an unknown key", "a tag that runs code", "a FIFO"}
    again = [case for case in found if case.kind != "output folder" and case.name in picked]
    return found + [
        Case(each.kind, f"{each.name} (fresh)", each.make, each.says, fresh=True) for each in again
    ]
