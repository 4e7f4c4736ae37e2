"""Arithmetic over printed cells, written as text: `cells(1, method="wanda") - 1`.

A small part of Python's own grammar, walked by hand, so that a CSV can say what a claim should
equal and can run nothing else.
"""

import ast
import math
import operator
from collections.abc import Callable

import numpy as np
import pandas as pd

from esparse_lab.audit.printed import Printed
from esparse_lab.errors import InputError

OPERATIONS: dict[type, Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
}
FUNCTIONS: dict[str, Callable] = {
    "min": lambda *values: float(np.min(np.hstack(values))),
    "max": lambda *values: float(np.max(np.hstack(values))),
    "mean": lambda values: float(np.mean(values)),
    "sum": lambda values: float(np.sum(values)),
    "minimum": np.minimum,
    "maximum": np.maximum,
    "smaller": lambda values: values.shift(fill_value=-math.inf),  # what the cell before has
    "steps": lambda values: values.diff().iloc[1:],
    "log": math.log,
    "log10": math.log10,
    "log10_factorial": lambda n: math.lgamma(n + 1) / math.log(10),
}


class Evaluation:
    """One expression on one set of tables.

    Attributes:
        value: a number, a boolean, or a series of either labelled by the cells' keys.
        sides: of a comparison, what was compared; else None.
        touched: labels of the cells that took part.
    """

    def __init__(self, expression: str, printed: Printed):
        self.touched: list[int] = []
        self.sides = None
        self._printed = printed
        try:
            tree = ast.parse(expression.strip(), mode="eval").body
        except SyntaxError as error:
            raise InputError(f"Cannot read the expression {expression!r}: {error}.") from None
        if isinstance(tree, ast.Compare) and len(tree.ops) == 1:
            left, right = self._of(tree.left), self._of(tree.comparators[0])
            self.sides, compare = (left, right), OPERATIONS.get(type(tree.ops[0]))
            self.value = compare(left, right)
        else:
            self.value = self._of(tree)

    def _of(self, node: ast.expr) -> object:
        match node:
            case ast.Constant(value=int() | float() | str()):
                return node.value
            case ast.List():
                return [self._of(item) for item in node.elts]
            case ast.UnaryOp(op=ast.USub()):
                return -self._of(node.operand)
            case ast.BinOp() if type(node.op) in OPERATIONS:
                return OPERATIONS[type(node.op)](self._of(node.left), self._of(node.right))
            case ast.Call(func=ast.Name(id=("cells" | "count") as name)):
                return getattr(self, f"_{name}")(
                    *map(self._of, node.args), **{k.arg: self._of(k.value) for k in node.keywords}
                )
            case ast.Call(func=ast.Name(id=name), keywords=[]) if name in FUNCTIONS:
                return FUNCTIONS[name](*map(self._of, node.args))
        raise InputError(
            f"{ast.unparse(node)!r} is not allowed in an expression; it may hold numbers, text, "
            f"lists, + - * / and comparisons, cells(...), count(...), {', '.join(FUNCTIONS)}."
        )

    def _cells(self, table: int | str, *, of: str = "number", **keys: str | list[str]) -> pd.Series:
        """The numbers of the selected cells, or one of their keys, named by the keys that vary."""
        places = self._printed.places(table, **keys)
        if places.empty:
            raise InputError(f"table {table} has no cell with {keys}.")
        self.touched += [*places]
        if of == "number":
            values = self._printed.numbers[places]
        else:
            values = self._printed.select(table, **keys)[of].astype(float).to_numpy()
        return pd.Series(values, places.index)

    def _count(self, table: int | str | None = None, **keys: str | list[str]) -> int:
        return len(self._printed.select(table, **keys))
