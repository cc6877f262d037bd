"""What the compiler makes of the kernels."""

from __future__ import annotations

import re
from typing import Any

import numba
import pytest

from mmbench.ops.kernels import adam, normalise, routing, sparse

DOUBLE = re.compile(r"= (fadd|fsub|fmul|fdiv|fcmp|fpext)\b.*\bdouble\b")
INTEGER, FLOAT, INTEGERS, FLAGS = numba.int64, numba.float32, numba.int64[::1], numba.boolean[::1]
ROW, TABLE, TABLES = numba.float32[::1], numba.float32[:, ::1], numba.float32[:, :, ::1]
CSR = (INTEGERS, INTEGERS, ROW)
BETAS = (FLOAT,) * 4
KERNELS = {
    "matmul": (sparse.matmul, (*CSR, TABLE, TABLE)),
    "matmul_rows": (sparse.matmul_rows, (INTEGERS, *CSR, TABLE, TABLE)),
    "dots": (sparse.dots, (INTEGERS, INTEGERS, TABLE, TABLE, ROW)),
    "normalise": (normalise.backward, (TABLE, TABLE, TABLE, FLOAT, TABLE)),
    "replay": (
        adam.replay,
        (INTEGERS, INTEGERS, INTEGER, INTEGER, ROW, ROW, *BETAS, *(TABLE,) * 4, numba.boolean),
    ),
    "update": (
        adam.update,
        (INTEGERS, INTEGERS, INTEGER, *(FLOAT,) * 2, *BETAS, FLOAT, *(TABLE,) * 5),
    ),
    "users_forward": (
        routing.users_forward,
        (INTEGERS, INTEGERS, TABLE, TABLE, INTEGER, FLOAT, TABLE, TABLE, TABLE, ROW, ROW, TABLE),
    ),
    "items_forward": (routing.items_forward, (*(INTEGERS,) * 3, ROW, *(TABLE,) * 4)),
    "items_backward": (
        routing.items_backward,
        (*(INTEGERS,) * 3, TABLE, ROW, ROW, TABLE, FLAGS, ROW),
    ),
    "users_backward": (
        routing.users_backward,
        (*(INTEGERS,) * 4, *(TABLE,) * 4, FLOAT, *(ROW,) * 4, TABLE, TABLE, FLAGS, TABLE, TABLES),
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
    """A constant of the wrong type would not change what a test of values can see, and would halve the speed."""
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
    """The instructions of double precision in the kernel, compiled anew: of a cached one nothing can be seen."""
    compiled = numba.jit(**kernel.targetoptions)(kernel.py_func)
    compiled.compile(arguments)
    return [line for line in compiled.inspect_llvm(arguments).splitlines() if DOUBLE.search(line)]
