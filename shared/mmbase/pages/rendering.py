"""Templates: where they are found, and how one becomes a page."""

from __future__ import annotations

import functools
import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmbase.errors import DataError, ToolError, install_extra
from mmbase.pages import palette

if TYPE_CHECKING:
    import jinja2
    from markupsafe import Markup

_HERE = Path(__file__).parent
_NEEDED = ("altair", "jinja2", "vl_convert")
_LIBRARY = "<!-- chart library -->"  # texts of values can't contain it: they are escaped
_CHART = '<figure class="chart"'
_BEGINS = b"<!doctype html"


def has_extra() -> bool:
    """Whether the libraries of the extra `report` are installed."""
    return all(find_spec(name) is not None for name in _NEEDED)


def require_extra(what: str) -> None:
    """Refuse in one line what needs the extra `report`.

    Args:
        what: What was asked for, as the beginning of the message: `mmbench gallery`.

    Raises:
        ToolError: One of its libraries is missing.
    """
    absent = ", ".join(name for name in _NEEDED if find_spec(name) is None)
    if absent:
        command = install_extra("report")
        raise ToolError(f"{what} needs the extra report ({absent} missing): {command}")


def require_page_name(path: Path) -> None:
    """Refuse a name at which something else than an earlier page would be lost.

    Args:
        path: The page to be written; asked for before the work, not after it.

    Raises:
        DataError: A folder has that name, or a file that is no HTML page.
    """
    if path.is_dir():
        raise DataError(f"{path}: is a folder; name a file in it")
    if path.is_file() and (size := path.stat().st_size):
        with path.open("rb") as file:
            if file.read(min(size, len(_BEGINS))).lower() != _BEGINS:
                what = f"{path}: is there already, and is no HTML page"
                raise DataError(f"{what}; choose another name, or delete it")


def environment(*folders: Path) -> jinja2.Environment:
    """Return the environment of templates; every value is escaped unless it is `Markup`.

    Args:
        folders: Where the caller's templates are; those of this package are found after them.
    """
    import jinja2

    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, _HERE]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.globals["style"] = _style
    found.globals["script"] = lambda: _text("page.js")
    return found


def render(env: jinja2.Environment, template: str, **context: Any) -> str:
    """Return the page of a template that extends `base.html`.

    Args:
        env: As `environment` gives it.
        template: Name of the template.
        context: Its values. `base.html` needs `title`, and takes `description` and `footer`.
    """
    page = env.get_template(template).render(**context)
    # Names of files may hold bytes that are no UTF-8; they stand there as escapes.
    page = page.encode("utf-8", "backslashreplace").decode()
    # The charts' library is 0.9 MB: a page without charts is spared it.
    return page.replace(_LIBRARY, _chart_library() if _CHART in page else "", 1)


def _style() -> Markup:
    """Return the style sheet with the colours of both themes."""
    from markupsafe import Markup

    light, dark = palette.as_css(0), palette.as_css(1)
    themes = (
        f":root{{color-scheme:light;{light}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root{{color-scheme:dark;{dark}}}}}"
        f"@media screen{{:root[data-theme=light]{{color-scheme:light;{light}}}"
        f":root[data-theme=dark]{{color-scheme:dark;{dark}}}}}"
    )
    return Markup(themes) + _text("page.css")


def _text(name: str) -> Markup:
    from markupsafe import Markup

    return Markup((_HERE / name).read_text(encoding="utf-8"))


@functools.cache
def _chart_library() -> str:
    import vl_convert

    # An inline script ends at the first `</script`, in a string as well.
    code = re.sub(
        "</(?=script)",
        r"<\\/",
        vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"),
        flags=re.IGNORECASE,
    )
    return f"<script>{code}</script>"
