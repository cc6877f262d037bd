"""Tables with a row for each user or item, of which a step uses the rows of its batch.

Dense Adam moves every row at every step. Where a table is large and a batch small, nearly all of a
step's time goes there, and with a fixed batch an epoch's cost grows with the square of the data:
more steps, and more rows in each. A `RowTable` replays what a row has missed when it is next used.
Small tables stay parameters under torch's fused Adam, whose passes are cheaper there; the two round
differently, so that a table's size is all that decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from mmbench.ops.row_table import RowTable
from mmbench.ops.rows import Grouped, distinct, take

LARGE = 1 << 22
"""Numbers of a table from which on its steps are deferred: see docs/scaling.md."""


class IdTable(RowTable):
    """A large table under deferred Adam; `lazy` where that is asked for, never `frozen`.

    A row that comes back after thousands of steps is not replayed step by step: see `glide`.
    """

    glides = True


Table = Tensor | IdTable


def id_table(values: nn.Parameter) -> Table:
    """The trainable table (n, d) that starts from `values`: deferred where it is large."""
    return IdTable(values.detach()) if values.numel() >= LARGE else values


def by_name(tables: Mapping[str, Table]) -> nn.Module:
    """Tables of one size as one module with `values()`, in the order given."""
    deferred = any(isinstance(one, IdTable) for one in tables.values())
    made: Any = nn.ModuleDict() if deferred else nn.ParameterDict()
    for name, table in tables.items():  # one by one: a dict would be sorted by name
        made[name] = table
    return cast(nn.Module, made)


def distinct_rows(table: Table, rows: Tensor) -> Tensor:
    """Rows of a table, (k, d), for row numbers as `distinct` gives them; once per step."""
    return table.rows(rows) if isinstance(table, IdTable) else take(table, rows)


def batch_rows(table: Table, rows: Grouped) -> Tensor:
    """Rows of a table, (k, d), in any order and repeated; once per step."""
    if not isinstance(table, IdTable):
        return take(table, rows)
    found, places = distinct(rows)
    return take(table.rows(found), places)


def whole(table: Table) -> Tensor:
    """All rows, (n, d): those of a large table without gradient."""
    return table.read() if isinstance(table, IdTable) else table
