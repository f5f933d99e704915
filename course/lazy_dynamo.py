"""Keep `torch._dynamo` unloaded until something compiles.

The first `torch.optim` object imports `torch._dynamo` (1.5 s, as long as torch itself) only to ask it for two
functions that do nothing outside `torch.compile`: `disable(fn)`, which returns `fn`, and `graph_break()`. A
student waits for every verdict, so this module answers those two itself; whatever else is asked of
`torch._dynamo` loads the real one and steps aside.
"""

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

_NAME = "torch._dynamo"


class _Dynamo(ModuleType):
    def graph_break(self, msg: str = "") -> None:
        """Outside of compiled code a graph break is nothing."""

    def disable(self, fn: Callable, recursive: bool = True, **_: Any) -> Callable:
        """Outside of compiled code every function is already uncompiled."""
        return fn

    def __getattr__(self, name: str) -> Any:
        # `inspect` asks every loaded module for its __file__; only __path__ is asked for by an import.
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        return getattr(load(), name)


def load() -> ModuleType:
    """The real `torch._dynamo`, put where it belongs."""
    if isinstance(sys.modules.get(_NAME), _Dynamo):
        import torch

        del sys.modules[_NAME]
        vars(torch).pop("_dynamo", None)
    return importlib.import_module(_NAME)


def install() -> None:
    """Call after `import torch`; does nothing when `torch._dynamo` is loaded already."""
    if _NAME in sys.modules:
        return
    import torch

    module = _Dynamo(_NAME)
    sys.modules[_NAME] = module
    setattr(torch, "_dynamo", module)  # noqa: B010  (mypy: the attribute exists only once it is loaded)
