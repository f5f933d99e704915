"""YAML files that hold one mapping of names, read strictly.

Used by config.py. PyYAML comes with jsonargparse and is imported when a file is read.
"""

from __future__ import annotations

import os
from typing import Any

from training.regular import open_regular
from training.schema import shown

LARGEST = 1 << 16  # bytes; PyYAML needs 2 s for them, and gigabytes for a file of a hundred megabytes


class FileError(ValueError):
    """What this module itself has to say of a file; PyYAML raises plain ValueErrors, too."""


def load_yaml(path: str) -> dict[str, Any]:
    """The mapping in a YAML file. A key that is there twice is an error, where YAML would take the last."""
    import yaml  # type: ignore[import-untyped]

    class Loader(yaml.SafeLoader):
        pass

    def mapping(loader: Any, node: Any) -> dict[Any, Any]:
        content: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key, line = loader.construct_object(key_node), key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise FileError(f"key {shown(key)} in {path} is no name of a field")
            if key in content:
                raise FileError(f"key {key!r} is in {path} twice, again in line {line}")
            content[key] = loader.construct_object(value_node, deep=True)
        return content

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        content = yaml.load(_read(path), Loader)
    except OSError as error:
        raise ValueError(f"cannot read the configuration {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"the configuration {path} is not UTF-8 text") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ValueError(
            f"{path}{where}: this is not YAML: {getattr(error, 'problem', None) or error}"
        ) from error
    except FileError:
        raise
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deep: a configuration is a flat list of fields") from error
    except ValueError as error:  # a date that is none, a number that is too long
        raise ValueError(f"{path} holds a value that cannot be read: {error}") from error
    if content is None:
        return {}  # a file of comments
    if not isinstance(content, dict):
        raise ValueError(f"{path} must be a list of fields like 'lr: 0.003', got {type(content).__name__}")
    return content


def _read(path: str) -> str:
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > LARGEST:
            raise FileError(f"the configuration {path} is larger than {LARGEST // 1024} KiB")
        return file.read(LARGEST).decode("utf-8")


def dump_yaml(content: dict[str, Any]) -> str:
    """The text that load_yaml reads back, in the order of the dict."""
    import yaml

    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return text
