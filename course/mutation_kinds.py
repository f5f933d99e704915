"""The ways in which course/mutants.py changes a solution: small slips, one at a time, on the syntax tree.

`expression_changes` and `statement_changes` look at one node or one block, and yield what may stand in its place.
They share the parts that stay with the original tree and change nothing in it.
"""

import ast
import itertools
from collections.abc import Iterator

Change = tuple[str, ast.expr]  # (kind, what stands in the expression's place)
BlockChange = tuple[
    str, int, int, list[ast.stmt]
]  # (kind, first, end, what stands in place of block[first:end])

DROPPED, SWAPPED = "statement dropped", "statements swapped"

_OPERATORS: dict[type[ast.operator], tuple[type[ast.operator], ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div, ast.Add),
    ast.Div: (ast.Mult, ast.FloorDiv),
    ast.FloorDiv: (ast.Div, ast.Mult),
    ast.Mod: (ast.FloorDiv,),
    ast.Pow: (ast.Mult,),
    ast.MatMult: (ast.Mult,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
}
_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {  # a neighbour, then the negation
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_SIBLINGS = {
    one: other
    for pair in (
        "add sub", "add_ sub_", "mul div", "mul_ div_", "_foreach_add_ _foreach_sub_", "_foreach_mul_ _foreach_div_",
        "_foreach_add _foreach_sub", "_foreach_mul _foreach_div", "addcmul addcdiv", "addcmul_ addcdiv_",
        "min max", "amin amax", "minimum maximum", "any all", "mean sum", "exp log", "sin cos", "ceil floor",
        "zeros ones", "zeros_like ones_like", "isfinite isnan", "train eval", "startswith endswith", "pop get",
        "append extend", "keys values",
    )
    for one, other in (pair.split(), pair.split()[::-1])
}  # fmt: skip
_DEFINITIONS = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom


def expression_changes(node: ast.expr, parent: ast.AST, field: str) -> Iterator[Change]:
    """What may stand in the place of `node`, which is `parent.field` or an item of it."""
    if field in ("test", "ifs"):
        yield "condition negated", _negated(node)
    match node:
        case ast.BinOp(left, operator, right):
            for other in _OPERATORS.get(type(operator), ()):
                yield "operator swapped", ast.BinOp(left, other(), right)
            yield "operand dropped", left
            yield "operand dropped", right
        case ast.BoolOp(operator, values):
            swapped = ast.Or() if isinstance(operator, ast.And) else ast.And()
            yield "operator swapped", ast.BoolOp(swapped, values)
            for rest in _without_one(values):
                yield "operand dropped", ast.BoolOp(operator, rest) if len(rest) > 1 else rest[0]
        case ast.Compare(left, [operator], comparators):
            for comparison in _COMPARISONS[type(operator)]:
                yield "comparison changed", ast.Compare(left, [comparison()], comparators)
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield "sign or not removed", operand
        case ast.Constant():
            is_identity = isinstance(parent, ast.Compare) and node.value is None
            yield from () if is_identity else _constants(node.value)
        case ast.Call():
            yield from _calls(node)
        case ast.Attribute(value, name) if isinstance(node.ctx, ast.Load):
            for other_name in _names(name, is_called=field == "func"):
                yield "method replaced", ast.Attribute(value, other_name, ast.Load())
        case ast.Name(name) if name in _SIBLINGS and field == "func":
            yield "method replaced", ast.Name(_SIBLINGS[name], ast.Load())
        case ast.Subscript(value, ast.Slice() as part):
            for bounds in _slices(part):
                yield "slice shifted", ast.Subscript(value, bounds, node.ctx)
        case ast.Dict(keys, values) if len(keys) > 1:
            for n in range(len(keys)):
                yield "entry dropped", ast.Dict(keys[:n] + keys[n + 1 :], values[:n] + values[n + 1 :])


def statement_changes(block: list[ast.stmt], is_loop_body: bool) -> Iterator[BlockChange]:
    """What may stand in the place of one or two statements of a block."""
    for n, statement in enumerate(block):
        if isinstance(statement, _DEFINITIONS | ast.Pass):
            continue
        yield DROPPED, n, n + 1, [ast.Pass()]
        for kind, new in _one_statement(statement):
            yield kind, n, n + 1, [new]
        if n + 1 < len(block) and not isinstance(block[n + 1], _DEFINITIONS):
            yield SWAPPED, n, n + 2, [block[n + 1], statement]
    if is_loop_body and not isinstance(block[-1], ast.Return | ast.Raise | ast.Break | ast.Continue):
        yield "loop left early", len(block) - 1, len(block), [block[-1], ast.Break()]


def _one_statement(statement: ast.stmt) -> Iterator[tuple[str, ast.stmt]]:
    match statement:
        case ast.Continue():
            yield "continue and break", ast.Break()
        case ast.Break():
            yield "continue and break", ast.Continue()
        case ast.AugAssign(target, operator, value):
            for other in _OPERATORS.get(type(operator), ()):
                yield "operator swapped", ast.AugAssign(target, other(), value)
            yield "assigned, not accumulated", ast.Assign([target], value)
        case ast.Return(value) if value is not None:
            yield "returns nothing", ast.Return(None)
        case ast.Expr(ast.Call(ast.Attribute(value, name) as function, arguments, keywords)):
            if name.endswith("_") and _is_torch(name[:-1]):
                outside = ast.Attribute(value, name[:-1], function.ctx)
                yield "not in place", ast.Expr(ast.Call(outside, arguments, keywords))
        case ast.If(_, body, orelse) if not isinstance(body[-1], ast.Raise):
            yield "always", ast.If(ast.Constant(True), body, orelse)
        case ast.With(_, body) | ast.Try(body):
            yield "block unwrapped", ast.If(ast.Constant(True), body, [])


def _negated(test: ast.expr) -> ast.expr:
    match test:
        case ast.UnaryOp(ast.Not(), operand):
            return operand
        case ast.Compare(left, [operator], comparators):
            return ast.Compare(left, [_COMPARISONS[type(operator)][-1]()], comparators)
    return ast.UnaryOp(ast.Not(), test)


def _constants(value: object) -> Iterator[Change]:
    """0 ↔ 1, n ± 1, 2n, −n; True ↔ False; None → 0. Texts stay as they are."""
    kind = "constant changed"
    if isinstance(value, bool):
        yield kind, ast.Constant(not value)
    elif value is None:
        yield kind, ast.Constant(0)
    elif isinstance(value, int):
        yield kind, ast.Constant(value + 1)
        yield kind, ast.Constant(value - 1) if value else _minus(1)
        if value > 1:
            yield kind, ast.Constant(2 * value)
        if value:
            yield kind, _minus(value)
    elif isinstance(value, float):
        yield kind, ast.Constant({0.0: 1.0, 1.0: 0.0}.get(value, 2 * value))
        if value:
            yield kind, _minus(value)


def _minus(value: float) -> ast.expr:
    return ast.UnaryOp(ast.USub(), ast.Constant(value))


def _calls(call: ast.Call) -> Iterator[Change]:
    """Arguments swapped or dropped, or the call itself: `f(x)` → `x`, `x.f()` → `x`, `max(x, y)` → `x`."""
    arguments, keywords = call.args, call.keywords
    for n in range(len(arguments) - 1):
        swapped = [*arguments[:n], arguments[n + 1], arguments[n], *arguments[n + 2 :]]
        yield "arguments swapped", ast.Call(call.func, swapped, keywords)
    if (
        len(arguments) > 1
    ):  # only the last may be optional; without another one the call nearly always crashes
        yield "argument dropped", ast.Call(call.func, arguments[:-1], keywords)
    for n in range(len(keywords)):
        yield "argument dropped", ast.Call(call.func, arguments, keywords[:n] + keywords[n + 1 :])
    for first, second in itertools.combinations(range(len(keywords)), 2):
        one, other = keywords[first], keywords[second]
        if one.arg is not None and other.arg is not None:
            crossed = list(keywords)
            crossed[first], crossed[second] = (
                ast.keyword(one.arg, other.value),
                ast.keyword(other.arg, one.value),
            )
            yield "arguments swapped", ast.Call(call.func, arguments, crossed)
    is_choice = isinstance(call.func, ast.Name) and call.func.id in ("min", "max")
    if not keywords and (len(arguments) == 1 or is_choice):
        for argument in arguments:
            if not isinstance(argument, ast.Starred | ast.GeneratorExp):
                yield "call dropped", argument
    if not keywords and not arguments and isinstance(call.func, ast.Attribute):
        yield "call dropped", call.func.value


def _names(name: str, is_called: bool) -> Iterator[str]:
    """Sibling methods, and the version that works in place."""
    if name in _SIBLINGS and is_called:
        yield _SIBLINGS[name]
    if is_called and not name.endswith("_") and _is_torch(name) and _is_torch(f"{name}_"):
        yield f"{name}_"


def _is_torch(name: str) -> bool:
    import torch

    return hasattr(torch.Tensor, name) or hasattr(torch, name)


def _slices(part: ast.Slice) -> Iterator[ast.Slice]:
    """Each bound dropped, or shifted by one."""
    lower, upper, step = part.lower, part.upper, part.step
    if lower is not None:
        yield ast.Slice(None, upper, step)
        yield ast.Slice(ast.BinOp(lower, ast.Add(), ast.Constant(1)), upper, step)
    if upper is not None:
        yield ast.Slice(lower, None, step)
        yield ast.Slice(lower, ast.BinOp(upper, ast.Sub(), ast.Constant(1)), step)


def _without_one(items: list[ast.expr]) -> Iterator[list[ast.expr]]:
    for n in range(len(items)):
        yield items[:n] + items[n + 1 :]
