"""The mutants of a module: each replaces one piece of its text."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import NamedTuple

_ONE = ["<", ">", "==", "is", "in", "and", "+", "*"]
_OTHER = ["<=", ">=", "!=", "is not", "not in", "or", "-", "/"]
_SWAPPED = dict(zip(_ONE + _OTHER, _OTHER + _ONE, strict=True))


class Mutant(NamedTuple):
    """`text[start:end]`, offsets in the module's bytes, becomes `replacement`; `lines` are its statement's."""

    start: int
    end: int
    replacement: str
    line: int
    lines: tuple[int, int] = (0, 0)

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.replacement.encode() + source[self.end :]


def mutants(source: bytes) -> list[Mutant]:
    """All of a module, in the order of its text."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    return sorted(set(_Finder(source, starts).find(ast.parse(source), (0, 0))))


class _Finder:
    def __init__(self, source: bytes, starts: list[int]) -> None:
        self._source = source
        self._starts = starts

    def find(self, node: ast.AST, lines: tuple[int, int]) -> Iterator[Mutant]:
        if _is_idle(node):
            return
        if isinstance(node, ast.stmt | ast.ExceptHandler):
            lines = _head(node)
        found = self._of_expression(node) if isinstance(node, ast.expr) else self._of_statement(node)
        yield from (mutant._replace(lines=lines) for mutant in found)
        skipped = _never_run(node)
        for child in ast.iter_child_nodes(node):
            if child not in skipped:
                yield from self.find(child, lines)

    def _of_expression(self, node: ast.expr) -> Iterator[Mutant]:
        match node:
            case ast.Compare(left=left, ops=[_], comparators=[right]) | ast.BinOp(left=left, right=right):
                yield from self._between(left, right)
            case ast.BoolOp(values=[left, right, *_]):
                yield from self._between(left, right)
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

    def _between(self, left: ast.expr, right: ast.expr) -> Iterator[Mutant]:
        """The operator, which has no position of its own: the text between its operands without their brackets."""
        start, end = self._end(left), self._start(right)
        operator = self._source[start:end].decode().strip(" \n()\\")
        if operator in _SWAPPED:
            at = self._source.index(operator.encode(), start)
            line = self._source.count(b"\n", 0, at) + 1
            yield Mutant(at, at + len(operator), _SWAPPED[operator], line)

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


def _head(node: ast.stmt | ast.ExceptHandler) -> tuple[int, int]:
    """The first and last line of a statement; of a compound statement, without its body."""
    body: list[ast.stmt] = getattr(node, "body", [])
    last = body[0].lineno - 1 if body else node.end_lineno or node.lineno
    return node.lineno, max(node.lineno, last)


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
