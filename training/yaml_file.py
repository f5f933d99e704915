"""YAML files that hold one mapping of names, read strictly.

Used by config.py. PyYAML comes with jsonargparse and is imported when a file is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def load_yaml(path: str) -> dict[str, Any]:
    """The mapping in a YAML file. A key that is there twice is an error, where YAML would take the last."""
    import yaml  # type: ignore[import-untyped]

    class Loader(yaml.SafeLoader):
        pass

    def mapping(loader: Any, node: Any) -> dict[Any, Any]:
        keys = [loader.construct_object(key) for key, _ in node.value]
        for number, key in enumerate(keys):
            if not isinstance(key, str):
                raise ValueError(f"key {key!r} in {path} is no name of a field")
            if key in keys[:number]:
                raise ValueError(
                    f"key {key!r} is in {path} twice, again in line {node.value[number][0].start_mark.line + 1}"
                )
        return dict(
            zip(keys, (loader.construct_object(value, deep=True) for _, value in node.value), strict=True)
        )

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader)
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
    if content is None:
        return {}  # a file of comments
    if not isinstance(content, dict):
        raise ValueError(f"{path} must be a list of fields like 'lr: 0.003', got {type(content).__name__}")
    return content


def dump_yaml(content: dict[str, Any]) -> str:
    """The text that load_yaml reads back, in the order of the dict."""
    import yaml

    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return text
