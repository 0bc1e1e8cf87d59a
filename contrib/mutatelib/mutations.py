"""All small changes that a module can be made to have, each by itself."""

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Final

COMPARISONS: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
OPERATORS: Final[dict[type[ast.operator], type[ast.operator]]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}


@dataclass(frozen=True)
class Mutant:
    """*source* is that of a module with one change, at *line*, where *before* has become *after*."""

    line: int
    before: str
    after: str
    source: str


class _Mutator(ast.NodeTransformer):
    """Counts the places that can be changed, and changes that with the number *wanted*."""

    def __init__(self, wanted: int | None) -> None:
        self.count = 0
        self.line = 0
        self._wanted = wanted

    def _is_wanted(self, node: ast.stmt | ast.expr) -> bool:
        self.count += 1
        if self.count - 1 != self._wanted:
            return False
        self.line = node.lineno
        return True

    def visit(self, node: ast.AST) -> ast.AST:
        """Visit *node*, but not what has no effect, nor what no test holds: imports, annotations and logs."""
        if isinstance(node, ast.Import | ast.ImportFrom | ast.JoinedStr) or _is_log(node):
            return node
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return node
        if isinstance(node, ast.stmt) and _can_be_left_out(node) and self._is_wanted(node):
            return ast.copy_location(ast.Pass(), node)
        return super().visit(node)  # type: ignore[no-any-return]

    def visit_arg(self, node: ast.arg) -> ast.AST:
        """Leave the annotation alone."""
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """Visit the defaults and the body."""
        return self._visit_function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        """Visit the defaults and the body."""
        return self._visit_function(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        """Visit the body."""
        decorators, node.decorator_list = node.decorator_list, []
        self.generic_visit(node)
        node.decorator_list = decorators
        return node

    def _visit_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        decorators, returns = node.decorator_list, node.returns
        node.decorator_list, node.returns = [], None
        self.generic_visit(node)
        node.decorator_list, node.returns = decorators, returns
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        """Visit the value."""
        annotation, node.annotation = node.annotation, ast.Constant(None)
        self.generic_visit(node)
        node.annotation = annotation
        return node

    def visit_Dict(self, node: ast.Dict) -> ast.AST:
        """Visit the values: keys are tables of the standard's numbers, which a test could only repeat."""
        node.values = [self.visit(value) for value in node.values]  # type: ignore[misc]
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        """Move a border, or turn a comparison round."""
        self.generic_visit(node)
        for index, operator in enumerate(node.ops):
            if self._is_wanted(node):
                node.ops[index] = COMPARISONS[type(operator)]()
        return node

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        """Exchange `and` and `or`."""
        self.generic_visit(node)
        if self._is_wanted(node):
            node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        return node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        """Leave out a `not`."""
        self.generic_visit(node)
        return node.operand if isinstance(node.op, ast.Not) and self._is_wanted(node) else node

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        """Exchange an operator; not where a type is made, or a text."""
        self.generic_visit(node)
        if type(node.op) in OPERATORS and not _is_text(node) and self._is_wanted(node):
            node.op = OPERATORS[type(node.op)]()
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        """Exchange True and False, and have one more of a number."""
        if isinstance(node.value, bool):
            if self._is_wanted(node):
                node.value = not node.value
        elif isinstance(node.value, int | float) and self._is_wanted(node):
            node.value += 1
        return node


def _is_log(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Attribute)
        and ast.unparse(node.value.func.value) == "log"
    )


def _is_text(node: ast.BinOp) -> bool:
    return any(
        isinstance(inner, ast.JoinedStr) or (isinstance(inner, ast.Constant) and isinstance(inner.value, str))
        for inner in ast.walk(node)
    )


def _can_be_left_out(node: ast.stmt) -> bool:
    """Whether *node* does something and binds no name that is needed behind it."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Call | ast.Await)
    return isinstance(node, ast.AugAssign | ast.Raise | ast.Delete)


def count(module: Path) -> int:
    """Return how many mutants *module* has."""
    mutator = _Mutator(None)
    mutator.visit(ast.parse(module.read_text()))
    return mutator.count


def mutant(module: Path, number: int) -> Mutant:
    """Return one of the mutants of *module*."""
    text = module.read_text()
    mutator = _Mutator(number)
    changed = ast.unparse(mutator.visit(ast.parse(text)))
    before, after = ast.unparse(ast.parse(text)).splitlines(), changed.splitlines()
    different = next(pair for pair in zip(before, after, strict=False) if pair[0] != pair[1])
    return Mutant(mutator.line, *_excerpts(*different), changed)


def _excerpts(before: str, after: str) -> tuple[str, str]:
    """Return what is around the first difference of two lines."""
    shorter = min(len(before), len(after))
    same = next((i for i in range(shorter) if before[i] != after[i]), shorter)
    start = max(same - 60, 0)
    return before[start : start + 100].strip(), after[start : start + 100].strip()
