"""What a checkpoint file may be before torch.load reads it, and what may have come out of it.

Used by checkpoint_file.py: ``state = load_untrusted(file, source, map_location, mmap)``.

`weights_only=True` runs no code. But it lets a file of a kilobyte allocate gigabytes, call torch's constructors, hold
tensors of 2⁴⁰ elements and lists of 2⁴⁰ lists, or hash a tuple so deep that the process dies. So the archive has to be
laid out as torch.save lays it out, its pickle is read through once without doing anything, and may name only what
data is made of; and what it makes may not be larger than its file accounts for.
"""

from __future__ import annotations

import math
import os
import pickletools
import re
import struct
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

SPARE = 32 << 20  # bytes that a file may need as Python objects, besides as many as it has itself
DEEPEST = 100  # containers within containers
RECORD = 1000  # bytes that zipfile and torch need to know of one record
FUNCTIONS = {
    "_codecs encode",  # how protocol 2 writes bytes
    "__builtin__ set",
    "__builtin__ complex",
    "collections Counter",
    "collections OrderedDict",
    "torch Size",
    "torch device",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_tensor_v3",
}
CONSTANTS = {
    "NONE", "NEWFALSE", "NEWTRUE", "BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1", "SHORT_BINSTRING",
    "EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET",
}  # fmt: skip
TAKES = {
    "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2,
    "REDUCE": 2, "NEWOBJ": 2, "BUILD": 1, "BINPERSID": 1,
}  # fmt: skip
COSTS = {
    "EMPTY_DICT": 72,
    "EMPTY_SET": 224,
    "REDUCE": 400,
    "NEWOBJ": 400,
}  # bytes of memory; any other: about 64
MARK = object()
PIECE = 1 << 20  # elements


class Untrusted(ValueError):
    """Why a file is not loaded."""


def load_untrusted(file: BinaryIO, source: Any, map_location: Any, mmap: bool) -> Any:
    """`torch.load(weights_only=True)` of a file that anybody may have made.

    Args:
        file: open for reading; all that is checked is checked here.
        source: what torch.load is given: the file itself, or, to map it into memory, its path.

    Raises:
        Untrusted: one clause on what is wrong with the file, "it is empty".
    """
    try:
        pickle_size = check_archive(file)
        file.seek(0)
        state = torch.load(source, map_location=map_location, weights_only=True, mmap=mmap)
        check_values(state, pickle_size, os.fstat(file.fileno()).st_size)
        return state
    except Untrusted:
        raise
    except Exception as error:  # zip, pickle and torch raise what they like at a foreign file
        # torch's own first line advises to load without safety
        found = re.search(r"WeightsUnpickler error:(.*)", str(error))
        text = (found[1] if found else str(error).strip().partition("\n")[0]).partition(". ")[0]
        text = "".join(letter for letter in text if letter.isprintable()).strip()[:150]
        raise Untrusted(text or type(error).__name__) from error


def check_archive(file: BinaryIO) -> int:
    """Refuse what torch.save would not have written. Returns the size of the pickle in bytes.

    Raises:
        Untrusted, zipfile.BadZipFile: what is wrong with the file.
    """
    size = os.fstat(file.fileno()).st_size
    _check_end(file, size)
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        names = [record.filename.lower() for record in records]  # torch finds a record by either case
        if len(set(names)) < len(names):
            raise Untrusted(f"it has the record {Counter(names).most_common(1)[0][0][:80]!r} twice")
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise Untrusted("its records are compressed, and may be larger than the file")
        if sum(record.file_size for record in records) > size:
            raise Untrusted("its records are larger than the file")
        if any(name.endswith("/constants.pkl") for name in names):
            raise Untrusted("it is TorchScript, which is code")
        pickles = [record for record in records if record.filename.lower().endswith("data.pkl")]
        if len(pickles) != 1 or not pickles[0].filename.endswith("/data.pkl"):
            raise Untrusted("it has no single data.pkl")
        data = archive.read(pickles[0])
    check_pickle(data, SPARE + size)
    return len(data)


def _check_end(file: BinaryIO, size: int) -> None:
    """There is one table of contents, right before the end: zipfile and torch look for it in different places."""
    if size == 0:
        raise Untrusted("it is empty")
    file.seek(0)
    if file.read(4) != b"PK\3\4":
        raise Untrusted("it is no archive as torch.save writes it")
    file.seek(max(0, size - 98))
    tail = file.read(98)
    if len(tail) < 98 or tail[-22:-18] != b"PK\5\6" or tail[-2:] != b"\0\0":
        raise Untrusted("the end of the archive is missing")
    length, offset = struct.unpack("<2I", tail[-10:-2])
    end = size - 22
    if tail[-42:-38] == b"PK\6\7":  # sizes of 64 bits, which torch always writes
        end = size - 98
        (where,) = struct.unpack("<Q", tail[-34:-26])
        length, offset = struct.unpack("<2Q", tail[40:56])
        if where != end or tail[:4] != b"PK\6\6":
            raise Untrusted("its table of contents is not where it says")
    if offset + length != end:
        raise Untrusted("its table of contents is not where it says")
    if length // 46 * RECORD > SPARE + size:  # an entry has 46 bytes and a name
        raise Untrusted("its table of contents needs more memory than the file")
    file.seek(0)


def check_pickle(data: bytes, limit: int) -> None:
    """Go through a pickle without doing what it says.

    Args:
        limit: bytes of memory that its objects may need.

    Raises:
        Untrusted: it names a function that data does not need, would need too much memory, or is malformed.
    """
    stack: list[Any] = []  # a text, a Name, a tuple's (depth, last item), MARK, or 0 for anything else
    memo: dict[int, Any] = {}
    cost = 0
    try:
        for operation, argument, _ in pickletools.genops(data):
            cost += COSTS.get(operation.name, 64)
            if cost > limit:
                raise Untrusted("its values need more memory than a file of this size should")
            _follow(operation.name, argument, stack, memo)
    except Untrusted:
        raise
    except (IndexError, KeyError, ValueError) as error:  # pickletools has the last for what it cannot read
        raise Untrusted("its pickle is malformed") from error


class _Name(str):
    """What a GLOBAL operation names: "module name"."""


def _follow(name: str, argument: Any, stack: list[Any], memo: dict[int, Any]) -> None:
    """One operation, as far as texts, functions and the depth of tuples go."""
    if name in CONSTANTS:
        stack.append(0)
    elif name in ("BINPUT", "LONG_BINPUT"):
        memo[argument] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET"):
        stack.append(memo[argument])
    elif name == "BINUNICODE":
        stack.append(argument)
    elif name == "GLOBAL":
        stack.append(_known(argument))
    elif name == "MARK":
        stack.append(MARK)
    elif name in TAKES:
        items = stack[-TAKES[name] :]
        del stack[-TAKES[name] :]
        _make(name, items, stack)
    elif name in ("TUPLE", "APPENDS", "SETITEMS"):
        mark = len(stack) - 1
        while stack[mark] is not MARK:
            mark -= 1
        items = stack[mark + 1 :]
        del stack[mark:]
        _make(name, items, stack)
    elif name == "PROTO" and argument != 2:
        raise Untrusted(f"its pickle has protocol {argument}, and torch reads 2")
    elif name == "STOP":
        stack.pop()
    elif name != "PROTO":
        raise Untrusted(f"its pickle has the operation {name}, which torch does not write")


def _make(name: str, items: list[Any], stack: list[Any]) -> None:
    if name.startswith("TUPLE"):
        depth = 1 + max((item[0] for item in items if type(item) is tuple), default=0)
        if depth > DEEPEST:
            raise Untrusted("its values are nested too deep")
        stack.append((depth, items[-1] if items else None))
    elif name in ("REDUCE", "NEWOBJ"):
        function, arguments = items
        if type(function) is not _Name or function not in FUNCTIONS:
            raise Untrusted(f"it calls {str(function).replace(' ', '.')[:80]!r}, which is not data")
        if function == "_codecs encode" and (type(arguments) is not tuple or arguments[1] != "latin1"):
            raise Untrusted("it has bytes in a form that torch does not write, such as punycode")
        stack.append(0)
    elif name == "BINPERSID":
        stack.append(0)


def _known(name: str) -> _Name:
    module, _, last = name.partition(" ")
    storage = module in ("torch", "torch.storage") and last.endswith("Storage")
    if (
        name in FUNCTIONS
        or storage
        or (module == "torch" and type(getattr(torch, last, None)) is torch.dtype)
    ):
        return _Name(name)
    raise Untrusted(f"it names {name.replace(' ', '.')[:80]!r}, which is not data")


def check_values(state: Any, pickle_size: int, file_size: int) -> None:
    """Refuse what is small in a file and without end outside of it. Iterative: nothing here recurses.

    Raises:
        Untrusted: loops, lists shared so often that nobody could copy them, depth, tensors larger than the file.
    """
    left = 4 * pickle_size + 10_000  # an item that is not shared takes a byte of the pickle at least
    waiting = [(state, 0)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, Tensor):
            _check_tensor(value, file_size)
            continue
        if isinstance(value, torch.UntypedStorage | torch.TypedStorage):
            raise Untrusted("it holds a storage without its tensor")
        left -= 1 + len(value)
        if left < 0:
            raise Untrusted("its values refer to one another without end")
        if depth > DEEPEST:
            raise Untrusted("its values are nested too deep")
        if type(value) is OrderedDict and not vars(value).keys() <= {"_metadata"}:
            raise Untrusted("a dict in it has attributes of its own")
        inside = value.values() if isinstance(value, dict) else value
        waiting += [(item, depth + 1) for item in inside if isinstance(item, _LOOKED_INTO)]


_LOOKED_INTO = (Tensor, torch.UntypedStorage, torch.TypedStorage, dict, list, tuple, set)


def _check_tensor(tensor: Tensor, file_size: int) -> None:
    if type(tensor) not in (Tensor, nn.Parameter):
        raise Untrusted(f"it holds a {type(tensor).__name__}, which is no plain tensor")
    if math.prod(tensor.shape) * tensor.element_size() > file_size:  # stride 0: any number of elements in one
        raise Untrusted("a tensor in it is larger than the file")


def all_finite(tensor: Tensor) -> bool:
    """Whether no element is inf or NaN; looked at in pieces, so that it needs next to no memory."""
    if not tensor.dtype.is_floating_point and not tensor.dtype.is_complex:
        return True
    for piece in tensor.detach().flatten().split(PIECE):
        wide = piece.float() if piece.element_size() == 1 else piece  # isfinite knows no float8
        if not bool(wide.isfinite().all()):
            return False
    return True


def is_finite(state: Mapping[str, Any]) -> bool:
    """Whether a run can go on from these numbers: no weight, no moment and no loss scale is inf or NaN."""
    optimizer, scaler = state.get("optimizer_state_dict"), state.get("scaler_state_dict")
    moments = optimizer.get("state") if isinstance(optimizer, Mapping) else None
    scale = scaler.get("scale") if isinstance(scaler, Mapping) else None
    tensors = [*_tensors(state.get("model_state_dict")), *_tensors(moments)]
    return all(map(all_finite, tensors)) and not (type(scale) is float and not math.isfinite(scale))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
