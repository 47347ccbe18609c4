"""The mutants of a module: each replaces one piece of its text."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import NamedTuple

_SWAPPED: dict[type[ast.AST], str] = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
    ast.And: "or",
    ast.Or: "and",
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
}


class Mutant(NamedTuple):
    """`text[start:end]`, offsets in the module's bytes, becomes `replacement`."""

    start: int
    end: int
    replacement: str
    line: int

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.replacement.encode() + source[self.end :]


def mutants(source: bytes) -> list[Mutant]:
    """All of a module, in the order of its text."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    return sorted(set(_Finder(source, starts).find(ast.parse(source))))


class _Finder:
    def __init__(self, source: bytes, starts: list[int]) -> None:
        self._source = source
        self._starts = starts

    def find(self, node: ast.AST) -> Iterator[Mutant]:
        if _is_idle(node):
            return
        if isinstance(node, ast.expr):
            yield from self._of_expression(node)
        else:
            yield from self._of_statement(node)
        skipped = _never_run(node)
        for child in ast.iter_child_nodes(node):
            if child not in skipped:
                yield from self.find(child)

    def _of_expression(self, node: ast.expr) -> Iterator[Mutant]:
        match node:
            case ast.Compare(left=left, ops=[operator], comparators=[right]):
                yield self._between(left, right, operator)
            case ast.BoolOp(op=operator, values=[first, second, *_]):
                yield self._between(first, second, operator)
            case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _SWAPPED:
                yield self._between(left, right, operator)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                yield self._replace(node, self._text(operand))
            case ast.Constant(value=bool() as value):
                yield self._replace(node, str(not value))
            case ast.Constant(value=int() | float() as value):
                yield self._replace(node, str(value + 1))
            case ast.IfExp(test=test):
                yield self._replace(test, "False")
                yield self._replace(test, "True")

    def _of_statement(self, node: ast.AST) -> Iterator[Mutant]:
        match node:
            case ast.If(test=test):
                yield self._replace(test, "False")
                yield self._replace(test, "True")
            case ast.While(test=test):
                yield self._replace(test, "False")
            case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
                yield self._replace(value, "None")
            case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Raise() | ast.Delete():
                yield self._replace(node, "pass")
            case ast.Assign(targets=[ast.Attribute()]):
                yield self._replace(node, "pass")
            case ast.Continue():
                yield self._replace(node, "break")
            case ast.Break():
                yield self._replace(node, "continue")
            case ast.ExceptHandler(type=ast.expr() as caught):
                yield self._replace(caught, "ZeroDivisionError")

    def _between(self, left: ast.expr, right: ast.expr, operator: ast.AST) -> Mutant:
        """The operator, which has no position of its own: the text between its operands without their brackets."""
        start, end = self._end(left), self._start(right)
        between = self._source[start:end].decode()
        bare = between.strip(" \n()\\")
        at = start + len(between[: between.index(bare)].encode())
        return Mutant(at, at + len(bare.encode()), _SWAPPED[type(operator)], self._source.count(b"\n", 0, at) + 1)

    def _replace(self, node: ast.expr | ast.stmt, replacement: str) -> Mutant:
        return Mutant(self._start(node), self._end(node), replacement, node.lineno)

    def _start(self, node: ast.expr | ast.stmt) -> int:
        return self._starts[node.lineno - 1] + node.col_offset

    def _end(self, node: ast.expr | ast.stmt) -> int:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self._starts[node.end_lineno - 1] + node.end_col_offset

    def _text(self, node: ast.expr) -> str:
        return f"({self._source[self._start(node) : self._end(node)].decode()})"


def _is_idle(node: ast.AST) -> bool:
    """What does nothing for the promise: text, assertions, imports for the type checker, lines for a developer."""
    match node:
        case ast.JoinedStr() | ast.Assert() | ast.arg():
            return True
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
        case ast.Expr(value=ast.Call(func=ast.Attribute(attr="debug"))):
            return True
    return False


def _never_run(node: ast.AST) -> list[ast.AST | None]:
    match node:
        case ast.FunctionDef(decorator_list=decorators, returns=returns):
            return [*decorators, returns]
        case ast.AnnAssign(annotation=annotation):
            return [annotation]
    return []
