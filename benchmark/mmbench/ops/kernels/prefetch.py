"""Telling the processor which row a kernel will read soon.

A sparse product reads rows in no order that the processor could guess. Where the matrix is larger
than its caches, it would wait for memory at each entry; a row that was asked for some entries ahead
is there when its turn comes. No number changes.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

AHEAD = 16
"""Entries between asking for a row and reading it: 4 are too few, 32 no better."""

_LINE = 64  # bytes that a request brings
_LINES = 4  # of a row; the processor follows a longer one by itself
_READ, _KEEP, _DATA = 0, 3, 1  # what LLVM's instruction is told


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(typing_context: Any, x: Any, row: Any) -> Any:
    """`prefetch(x, row)` asks for the start of row `row` of a matrix, and waits for nothing."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        matrix, number = arguments
        view = context.make_array(signature.args[0])(context, builder, matrix)
        byte, word, flag = ir.IntType(8), ir.IntType(64), ir.IntType(32)
        offset = builder.mul(
            context.cast(builder, number, signature.args[1], types.intp),
            builder.extract_value(view.strides, 0),
        )
        start = builder.gep(builder.bitcast(view.data, byte.as_pointer()), [offset])
        name = "llvm.prefetch.p0i8"
        kind = ir.FunctionType(ir.VoidType(), [byte.as_pointer(), flag, flag, flag])
        request = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        told = [ir.Constant(flag, value) for value in (_READ, _KEEP, _DATA)]
        for line in range(_LINES):
            address = builder.gep(start, [ir.Constant(word, _LINE * line)])
            builder.call(request, [address, *told])
        return context.get_dummy_value()

    return types.void(x, row), generate
