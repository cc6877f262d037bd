"""Datasets in the layouts of other frameworks, read and written.

A layout is one module, one line of `LAYOUTS` and a name in the command. Its module has
`detect(folder)`, `read(folder)`, an `EXAMPLE` of the folder's files and, where it can be written,
`write(bundle, folder, missing)`.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from mmbench.data.exchange import ducho, elliot, lightgcn, microlens, mmrec, recbole
from mmbench.data.exchange.unread import named
from mmbench.errors import DataError, unknown_name

LAYOUTS: dict[str, ModuleType] = {
    module.__name__.rpartition(".")[2]: module
    for module in (mmrec, recbole, microlens, lightgcn, elliot, ducho)
}
"""In the order in which a folder is tried on them."""


def layout(name: str, folder: Path) -> tuple[str, ModuleType]:
    """Return the layout of that name; `auto` looks at the folder.

    Raises:
        UsageError: There is no such layout.
        DataError: The folder is absent, or looks like none of them; a layout that is known and
            not read is named.
    """
    if name != "auto":
        if name not in LAYOUTS:
            raise unknown_name("layout", name, LAYOUTS)
        return name, LAYOUTS[name]
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    for key, module in LAYOUTS.items():
        if module.detect(folder):
            return key, module
    unread = named(folder)
    if unread is not None:
        raise DataError(f"{folder}: {unread}")
    looks = "; ".join(f"{key}: {module.EXAMPLE}" for key, module in LAYOUTS.items())
    raise DataError(f"{folder}: looks like none of the known layouts ({looks}); give --format")
