"""The configuration of a command from defaults, YAML files and flags, in rising order of precedence.

Run: ``config = parse("pretrain", ["--config", "training/configs/pretrain.yaml", "--lr", "3e-3"])``.

A YAML file is a flat list of fields: ``lr: 0.003`` is what ``--lr 0.003`` is. Types and help come from schema.py;
jsonargparse reads flags and YAML values. Nothing here imports torch, so that a typing error costs no second.
Paths in a file are relative to the working directory, as those in flags are.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from argparse import ArgumentError
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_type_hints

from training.durable import make_folder
from training.schema import (
    CALL,
    HUGE,
    LONGEST_TEXT,
    RUN,
    ConfigError,
    DPOConfig,
    PretrainConfig,
    SFTConfig,
    describe,
    shown,
    suggest,
)
from training.yaml_file import dump_yaml, load_yaml

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

CONFIGS: dict[str, type[PretrainConfig]] = {"pretrain": PretrainConfig, "sft": SFTConfig, "dpo": DPOConfig}
CONFIG_FILE = "config.yaml"
LONGEST_WORD = 40  # characters of a number; the parser would take lists of lists apart before it refuses them
DESCRIPTIONS = {
    "pretrain": "Train a byte-level GPT on plain text.",
    "sft": "Fine-tune a GPT on prompts and answers.",
    "dpo": "Fine-tune a GPT on preferences: a prompt, a chosen and a rejected answer.",
}


def parse(command: str, argv: Sequence[str]) -> PretrainConfig:
    """The checked configuration of a command; flags win over files, a later file over an earlier one.

    Args:
        command: "pretrain", "sft" or "dpo"; the result is a PretrainConfig, SFTConfig or DPOConfig.
        argv: what follows the command: ``--config FILE`` (any number of them) and a flag for each field.

    Raises:
        SystemExit: 2 after one line on stderr that says what is wrong, where, and the nearest name that is
            right; 0 after --help.
    """
    parser, flags = build_parser(command), list(argv)
    if "--help" in flags or "-h" in flags:
        parser.parse_args(["--help"])
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    try:
        for path in take_config_paths(flags):
            found = read_file(parser, path, command)
            values.update(found)
            sources.update(dict.fromkeys(found, path))
        found = read_flags(parser, flags, command)
        values.update(found)
        sources.update({name: f"--{name}" for name in found})
        return build(CONFIGS[command], values)
    except ConfigError as error:
        source = sources.get(error.name)
        quit_with(f"{error} (from {source})" if source else str(error))
    except ValueError as error:
        quit_with(str(error))


def build(config_class: type[PretrainConfig], values: Mapping[str, Any]) -> PretrainConfig:
    """The configuration with these fields, the others as they are by default.

    Raises:
        ConfigError: a value that its field cannot have, or two that do not fit together.
    """
    sections = {}
    for section in fields(config_class):
        default: Any = section.default
        own = {spec.name: getattr(default, spec.name) for spec in fields(default)}
        sections[section.name] = type(default)(**{name: values.get(name, own[name]) for name in own})
    return config_class(**sections)


def options(config_class: type[PretrainConfig]) -> Iterator[tuple[str, Field[Any], Any, Any]]:
    """(section, field, type, default) of every field of a command."""
    for section in fields(config_class):
        default: Any = section.default
        hints = get_type_hints(type(default))
        for spec in fields(default):
            yield section.name, spec, hints[spec.name], getattr(default, spec.name)


def build_parser(command: str) -> ArgumentParser:
    """The parser of a command's flags, one for each field."""
    try:
        from jsonargparse import ActionYesNo, ArgumentParser
    except ImportError as error:
        raise SystemExit("python -m training needs a package: pip install jsonargparse") from error

    prog = f"python -m training {command}"
    parser = ArgumentParser(
        prog=prog,
        usage=f"{prog} [--config FILE] [--FIELD VALUE …]",
        description=DESCRIPTIONS[command],
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="a YAML file of fields; flags win over it")
    groups: dict[str, Any] = {}
    for section, spec, hint, default in options(CONFIGS[command]):
        if section not in groups:
            groups[section] = parser.add_argument_group(f"the {section}")
        kind: dict[str, Any] = {"type": hint, "metavar": spec.name.upper()}
        if hint is bool:  # --use_amp, --use_amp false, --no_use_amp
            kind = {"action": ActionYesNo, "nargs": "?"}
        groups[section].add_argument(f"--{spec.name}", default=default, help=spec.metadata["help"], **kind)
    return parser


def take_config_paths(argv: list[str]) -> list[str]:
    """Remove every ``--config FILE`` from argv, so that flags win over files wherever they stand."""
    paths = []
    while (
        index := next((i for i, word in enumerate(argv) if re.match(r"--config(=|$)", word)), None)
    ) is not None:
        _, equals, path = argv.pop(index).partition("=")
        if not equals:
            if index == len(argv) or argv[index].startswith("--"):
                raise ValueError("--config needs the path of a YAML file")
            path = argv.pop(index)
        paths.append(path)
    return paths


def read_file(parser: ArgumentParser, path: str, command: str) -> dict[str, Any]:
    """The fields that a YAML file sets."""
    content = load_yaml(path)
    known = {spec.name: hint for _, spec, hint, _ in options(CONFIGS[command])}
    for name in content:
        if name not in known:
            raise ValueError(f"unknown key {name!r} in {path}{suggest(str(name), known)}")
    for name, value in content.items():
        # What jsonargparse lets pass, or refuses without naming the field.
        null = value is None and type(None) not in getattr(known[name], "__args__", ())
        nested = isinstance(value, list | tuple | dict | set)  # it may be longer than any memory, written out
        huge = type(value) is int and abs(value) > HUGE
        if null or nested or huge or (known[name] is bool and not isinstance(value, bool)):
            text = "null" if null else shown(value)
            raise ValueError(f"{name} must be {describe(known[name])}, got {text} (from {path})")
    try:
        parsed = parser.parse_object(content, defaults=False)
    except ArgumentError as error:
        raise type_error(error, known, content, path) from error
    return {name: getattr(parsed, name) for name in content}


def read_flags(parser: ArgumentParser, argv: list[str], command: str) -> dict[str, Any]:
    """The fields that flags set."""
    known = {spec.name: hint for _, spec, hint, _ in options(CONFIGS[command])}
    given: dict[str, Any] = {}
    for word, following in zip(argv, [*argv, ""][1:], strict=True):
        if not word.startswith("--"):
            continue
        flag, equals, value = word[2:].partition("=")
        name = flag if flag in known else flag.removeprefix("no_")
        if name not in known or (flag != name and known[name] is not bool):
            nearest = suggest(flag.replace("-", "_"), known).replace("'", "--", 1).replace("'", "")
            raise ValueError(f"unknown flag --{flag}{nearest or f'; see {parser.prog} --help'}")
        given[name] = value if equals else following
        is_text = str in (getattr(known[name], "__args__", None) or (known[name],))
        if len(given[name]) > (LONGEST_TEXT if is_text else LONGEST_WORD):
            raise ValueError(
                f"{name} must be {describe(known[name])}, got {shown(given[name])} (from --{name})"
            )
    try:
        parsed = parser.parse_args(argv, defaults=False)
    except ArgumentError as error:
        raise type_error(error, known, given, "flag") from error
    return {name: getattr(parsed, name) for name in given}


def type_error(
    error: ArgumentError, known: Mapping[str, Any], given: Mapping[str, Any], source: str
) -> ValueError:
    """The parser's complaint about one field in our words: what it must be, what it is, where it is from."""
    text = str(error)
    name = next((name for name in given if re.search(rf'["-]{name}\b', text)), None)
    if name is None:
        return ValueError(" ".join(text.split()))  # no field of ours: a word that belongs to no flag
    where = f"--{name}" if source == "flag" else source
    if "expected one argument" in text:
        return ValueError(f"{where} needs a value: {describe(known[name])}")
    return ValueError(f"{name} must be {describe(known[name])}, got {shown(given[name])} (from {where})")


def to_dict(config: PretrainConfig, *scopes: str) -> dict[str, Any]:
    """The fields as a flat dict of plain values, as YAML, flags and checkpoints have them.

    Args:
        scopes: only the fields of these scopes (schema.RUN, PLACE, CALL); none given: all fields.
    """
    return {
        spec.name: getattr(getattr(config, section), spec.name)
        for section, spec, _, _ in options(type(config))
        if not scopes or spec.metadata["scope"] in scopes
    }


def config_digest(config: PretrainConfig) -> str:
    """SHA-256 of what decides the numbers of a run: the same on every machine and in every process.

    Where the run is written, on which device it is computed, what is logged in addition and whether it is a
    resumed one is left out; see `scope` in schema.py.
    """
    text = json.dumps(to_dict(config, RUN), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(old: Mapping[str, Any], new: PretrainConfig) -> list[str]:
    """What changed since `old`, the dict in a checkpoint or from another rank: ["lr: 0.005 → 0.001", …].

    Only fields that decide the numbers of a run; one that `old` does not have is not a change.
    """
    return [
        f"{name}: {old[name]} → {value}"
        for name, value in to_dict(new, RUN).items()
        if name in old and old[name] != value
    ]


def write_config(config: PretrainConfig, output_dir: str | os.PathLike[str]) -> Path:
    """Write output_dir/config.yaml, which `--config` reads: all fields, but for those about this call alone.

    Raises:
        ValueError: it cannot be written.
    """
    command = next(name for name, config_class in CONFIGS.items() if config_class is type(config))
    path = Path(output_dir) / CONFIG_FILE
    kept = {name: value for name, value in to_dict(config).items() if name not in to_dict(config, CALL)}
    text = f"# python -m training {command} --config {path}\n# digest {config_digest(config)}\n"
    temporary = path.with_name(f".{CONFIG_FILE}.tmp")
    try:
        make_folder(path.parent)
        temporary.write_text(text + dump_yaml(kept), encoding="utf-8")
        os.replace(temporary, path)  # a reader sees the old one or the new one
    except OSError as error:
        raise ValueError(
            f"Cannot write to {path.parent}: {error.strerror}; choose another --output_dir."
        ) from error
    return path


def quit_with(message: str) -> NoReturn:
    """One line on stderr, exit code 2."""
    print(" ".join(message.split()), file=sys.stderr)
    raise SystemExit(2)
