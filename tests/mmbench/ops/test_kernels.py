"""What the compiler makes of the kernels."""

from __future__ import annotations

import re
from typing import Any

import numba
import pytest

from mmbench.ops.kernels import routing, rows

DOUBLE = re.compile(r"= (fadd|fsub|fmul|fdiv|fcmp|fpext)\b.*\bdouble\b")
INTEGER, FLOAT, INTEGERS, FLAGS = numba.int64, numba.float32, numba.int64[::1], numba.boolean[::1]
ROW, TABLE, TABLES = numba.float32[::1], numba.float32[:, ::1], numba.float32[:, :, ::1]
CSR = (INTEGERS, INTEGERS, ROW)


def bundle(kind: type, *fields: Any) -> Any:
    """Numba's type of a NamedTuple of these fields."""
    if len(set(fields)) == 1:
        return numba.types.NamedUniTuple(fields[0], len(fields), kind)
    return numba.types.NamedTuple(fields, kind)


TABLES_OF_ADAM = bundle(rows.Table, *(TABLE,) * 3)
CONSTANTS = bundle(rows.Constants, *(FLOAT,) * 6)
GRAPH = bundle(routing.Graph, *(INTEGERS,) * 6)
KEPT = bundle(routing.Kept, *(TABLE,) * 4)
INCOMING = bundle(routing.Incoming, TABLE, TABLE, TABLE, ROW, FLAGS)
ONE_STEP, ALL_STEPS = bundle(rows.Steps, FLOAT, FLOAT), bundle(rows.Steps, ROW, ROW)
JUMPS = bundle(rows.Jumps, INTEGERS, TABLE)
KERNELS = {
    "matmul": (rows.matmul, (*CSR, TABLE, TABLE)),
    "matmul_rows": (rows.matmul_rows, (INTEGERS, *CSR, TABLE, TABLE)),
    "dots": (rows.dots, (INTEGERS, INTEGERS, TABLE, TABLE, ROW)),
    "normalise": (rows.normalise_backward, (TABLE, TABLE, TABLE, FLOAT, TABLE)),
    "replay": (
        rows.replay,
        (
            *(INTEGERS, INTEGERS, INTEGER, INTEGER, ALL_STEPS, CONSTANTS, TABLES_OF_ADAM),
            *(TABLE, numba.boolean, JUMPS),
        ),
    ),
    "update": (
        rows.update,
        (INTEGERS, INTEGERS, INTEGER, ONE_STEP, CONSTANTS, TABLE, TABLE, TABLES_OF_ADAM, JUMPS),
    ),
    "users_forward": (routing.users_forward, (GRAPH, TABLE, TABLE, FLOAT, KEPT, ROW, TABLE)),
    "items_forward": (routing.items_forward, (GRAPH, TABLE, KEPT, ROW, TABLE)),
    "items_backward": (routing.items_backward, (GRAPH, KEPT, INCOMING)),
    "users_backward": (
        routing.users_backward,
        (INTEGERS, GRAPH, TABLE, TABLE, FLOAT, KEPT, INCOMING, TABLE, TABLES),
    ),
    "confident_forward": (
        routing.confident_forward,
        (TABLE, TABLE, INTEGERS, numba.boolean, numba.int16[::1], ROW),
    ),
    "confident_backward": (
        routing.confident_backward,
        (TABLE, TABLE, INTEGERS, numba.int16[::1], ROW, TABLE, TABLE),
    ),
}


@pytest.mark.parametrize("name", KERNELS)
def test_single_precision_stays_single(name: str) -> None:
    """A constant of the wrong type changes no value that a test sees, and halves the speed."""
    kernel, arguments = KERNELS[name]
    if name != "confident_backward":
        arguments = (INTEGER, INTEGER, *arguments)
    assert doubles(kernel, arguments) == []


def test_the_check_notices_a_plain_zero() -> None:
    def total(x: Any) -> Any:
        total = x[0] * 0
        for value in x:
            total += value
        return total

    assert doubles(numba.njit(total), (ROW,)) != []


def doubles(kernel: Any, arguments: tuple[Any, ...]) -> list[str]:
    """The double-precision instructions of the kernel, compiled anew: a cached one shows none."""
    compiled = numba.jit(**kernel.targetoptions)(kernel.py_func)
    compiled.compile(arguments)
    return [line for line in compiled.inspect_llvm(arguments).splitlines() if DOUBLE.search(line)]
