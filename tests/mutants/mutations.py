"""Mutants of one Python file: the same file with one small thing changed.

Owns: what is changed, and where.
Knows nothing about: tests, processes.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Mutant", "mutants_of"]

_SWAPS = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==", ast.Is: "is not",
    ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in", ast.And: "or", ast.Or: "and", ast.Add: "-", ast.Sub: "+",
    ast.Mult: "//", ast.FloorDiv: "*", ast.Div: "*", ast.Mod: "*", ast.LShift: ">>", ast.RShift: "<<",
    ast.BitAnd: "|", ast.BitOr: "&", ast.BitXor: "|",
}  # fmt: skip
_OPERATOR = re.compile(rb"is not|not in|\b(?:is|in|and|or)\b|<<|>>|//|[<>=!]=|[-+*/%<>&|^]")
_NEGATED_BY_SWAP = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)


@dataclass(frozen=True)
class Mutant:
    """One changed file.

    Attributes:
        source: all of it.
        function: the name of the function in which the change is; "" outside of functions.
        line, last_line: the first and the last line of the statement, or of its head, that was changed.
        before, after: the first changed line. ``after`` is "(deleted)" and the line if the statement is gone.
        runs_at_import: the change is outside of functions, or in a default of one.
    """

    source: bytes
    function: str
    line: int
    last_line: int
    before: str
    after: str
    runs_at_import: bool


def mutants_of(source: bytes) -> Iterator[Mutant]:
    """Yields every mutant of ``source`` that is still Python."""
    finder = _Finder(source)
    finder.visit(ast.parse(source))
    seen = set()
    for start, end, text, statement, function, in_function, is_deletion in finder.found:
        mutated = source[:start] + text + source[end:]
        try:
            compile(mutated, "mutant", "exec")
        except SyntaxError:
            continue
        if mutated in seen:
            continue
        seen.add(mutated)
        number = source.count(b"\n", 0, start)
        before = source.split(b"\n")[number].decode().strip()
        after = f"(deleted) {before}" if is_deletion else mutated.split(b"\n")[number].decode().strip()
        body = getattr(statement, "body", None)
        last = body[0].lineno - 1 if isinstance(body, list) else statement.end_lineno or statement.lineno
        last = max(statement.lineno, last)
        yield Mutant(mutated, function, statement.lineno, last, before, after, not in_function)


class _Finder(ast.NodeVisitor):
    """Collects the changes of a tree: (first byte, last byte + 1, new text, statement, function, in one, deletes)."""

    def __init__(self, source: bytes) -> None:
        self.found: list[tuple[int, int, bytes, ast.stmt, str, bool, bool]] = []
        self._source = source
        self._line_starts = [0, *(match.end() for match in re.finditer(rb"\n", source))]
        self._statement = ast.stmt()
        self._function: ast.FunctionDef | ast.AsyncFunctionDef | None = None
        self._depth = 0

    # -- where ----------------------------------------------------------------------------------------------------

    def visit(self, node: ast.AST) -> None:
        """Visits what runs: no annotations, decorators or docstrings, and no ``__all__`` or ``__slots__``."""
        if not isinstance(node, ast.stmt):
            super().visit(node)
            return
        outer, self._statement = self._statement, node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for default in (*node.args.defaults, *(one for one in node.args.kw_defaults if one)):
                self.visit(default)
            outer_function, self._function = self._function, node
            self._depth += 1
            self._visit_all(node.body)
            self._depth -= 1
            self._function = outer_function
        elif isinstance(node, ast.ClassDef):
            self._visit_all(node.body)
        elif isinstance(node, ast.AnnAssign):
            if node.value is not None:
                self.visit(node.value)
        elif not isinstance(node, ast.Import | ast.ImportFrom) and not _is_a_list_of_names(node):
            self._mutate_statement(node)
            super().visit(node)
        self._statement = outer

    def _visit_all(self, nodes: list[ast.stmt]) -> None:
        for node in nodes:
            if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
                self.visit(node)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._depth += 1
        self.generic_visit(node)
        self._depth -= 1

    def _add(self, start: int, end: int, text: bytes, *, is_deletion: bool = False) -> None:
        name = self._function.name if self._function else ""
        self.found.append((start, end, text, self._statement, name, self._depth > 0, is_deletion))

    def _start(self, node: ast.expr | ast.stmt) -> int:
        return self._line_starts[node.lineno - 1] + node.col_offset

    def _end(self, node: ast.expr | ast.stmt) -> int:
        assert node.end_lineno is not None and node.end_col_offset is not None
        return self._line_starts[node.end_lineno - 1] + node.end_col_offset

    # -- what -----------------------------------------------------------------------------------------------------

    def _mutate_statement(self, node: ast.stmt) -> None:
        is_deletable = isinstance(node, ast.Expr | ast.AugAssign | ast.Delete | ast.Raise | ast.Break | ast.Continue)
        if self._depth and (is_deletable or (isinstance(node, ast.Assign) and self._is_bound_before(node))):
            self._add(self._start(node), self._end(node), b"pass", is_deletion=True)
        if isinstance(node, ast.Return) and node.value is not None and not _is_falsy(node.value):
            self._add(self._start(node.value), self._end(node.value), b"None")
        if isinstance(node, ast.AugAssign):
            self._swap(node.op, self._end(node.target), self._start(node.value), b"=")
        if isinstance(node, ast.If):
            self._negate(node.test)

    def _is_bound_before(self, node: ast.Assign) -> bool:
        """Whether the function goes on without ``node``, for a while; else every test would notice."""
        assert self._function is not None
        if not isinstance(target := node.targets[0], ast.Name):
            return self._function.name != "__init__"
        stores = (one for one in ast.walk(self._function) if isinstance(one, ast.Name | ast.arg))
        names = [one.id if isinstance(one, ast.Name) else one.arg for one in stores if not _is_read(one)]
        return names.count(target.id) > 1

    def visit_keyword(self, node: ast.keyword) -> None:
        """``strict`` of ``zip`` is a net below the code: without it, right code does the same."""
        if node.arg != "strict":
            self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._negate(node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self._negate(test)
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        for left, operator, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
            self._swap(operator, self._end(left), self._start(right))
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        for left, right in zip(node.values, node.values[1:], strict=False):
            self._swap(node.op, self._end(left), self._start(right))
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        self._swap(node.op, self._end(node.left), self._start(node.right))
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):
            self._add(self._start(node), self._start(node.operand), b"")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self._replace(node, str(not node.value))
        elif isinstance(node.value, float):
            self._replace(node, str(2 * node.value or 1.0))
        elif isinstance(node.value, int):
            self._replace(node, str(node.value + 1))
            if node.value:
                self._replace(node, str(node.value - 1))

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Texts are for people; what they must say is in the tests of errors."""

    def visit_arguments(self, node: ast.arguments) -> None:
        """Those of a lambda; a function's are visited with it."""

    def _replace(self, node: ast.expr, text: str) -> None:
        self._add(self._start(node), self._end(node), text.encode())

    def _swap(self, operator: ast.AST, start: int, end: int, suffix: bytes = b"") -> None:
        if type(operator) in _SWAPS and (match := _OPERATOR.search(self._source, start, end)):
            self._add(match.start(), match.end(), _SWAPS[type(operator)].encode())

    def _negate(self, test: ast.expr) -> None:
        """Unless another mutant does the same."""
        if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], _NEGATED_BY_SWAP):
            return
        if not (isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)):
            start, end = self._start(test), self._end(test)
            self._add(start, end, b"not (" + self._source[start:end] + b")")


def _is_falsy(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and not node.value


def _is_read(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)


def _is_a_list_of_names(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and isinstance(name := node.targets[0], ast.Name) and name.id[:2] == "__"
