"""A store: a folder of feature sets, `<root>/<modality>/<name>.h5`. Its listing is its manifest."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

from mmstore.errors import DamagedFeatureSet, InvalidInput, UnknownFeatureSet
from mmstore.hdf5 import translated
from mmstore.reader import FeatureSet
from mmstore.schema import check_modality, check_name
from mmstore.spec import PARTIAL_SUFFIX, SUFFIX


class FeatureStore:
    """A folder of feature sets. Nothing is cached: sets may come and go while it is in use.

    Args:
        root: The folder, usually `<dataset>/features`. One that does not exist is an empty store.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def __repr__(self) -> str:
        return f"FeatureStore({str(self.root)!r})"

    def sets(self) -> list[tuple[str, str]]:
        """Return (modality, name) of every finished set with valid names, sorted."""
        return self._listing(SUFFIX)

    def partials(self) -> list[tuple[str, str]]:
        """Return (modality, name) of every unfinished set, sorted."""
        return self._listing(SUFFIX + PARTIAL_SUFFIX)

    def path(self, modality: str, name: str) -> Path:
        """Return where the set of this modality and name, both never paths, lies or would lie."""
        return self.root / check_modality(modality) / f"{check_name(name)}{SUFFIX}"

    def open(self, modality: str, name: str | None = None) -> FeatureSet:
        """Open the set of this modality and name, its header checked.

        The name may be left out where the modality has one set only.

        Raises:
            UnknownFeatureSet: There is none, or the name was left out and there are several; lists
                the choices.
            DamagedFeatureSet: Its header names another modality.
            StoreError: The file can't be read, see `FeatureSet`.
        """
        known = self.sets()
        names = [found for kind, found in known if kind == modality]
        if not names:
            hint = _hint(modality, {kind for kind, _ in known})
            raise UnknownFeatureSet(
                f"{self.root}: no feature set of modality {modality!r}{hint}; make one with "
                f"`mmx extract --modality {modality} --model …`{self._partial_note(modality)}"
            )
        if name is None:
            if len(names) > 1:
                what = f"{self.root}: several {modality} sets ({', '.join(names)})"
                raise UnknownFeatureSet(f"{what}; say which, as in {modality}={names[0]}")
            name = names[0]
        elif name not in names:
            notes = _hint(name, names) + self._partial_note(modality, name)
            raise UnknownFeatureSet(f"{self.root}: no {modality} set {name!r}{notes}")
        found = FeatureSet(self.path(modality, name))
        if found.modality != modality:
            what = f"{found.path}: its modality is {found.modality!r}, its folder's {modality!r}"
            raise DamagedFeatureSet(f"{what}; move it to the right folder")
        return found

    def _partial_note(self, modality: str, name: str | None = None) -> str:
        names = [n for kind, n in self.partials() if kind == modality and name in (None, n)]
        if not names:
            return ""
        cure = "run their extraction again, it goes on where it stopped"
        return f". Unfinished: {', '.join(names)}; {cure}"

    def _listing(self, suffix: str) -> list[tuple[str, str]]:
        found = []
        with translated(self.root):
            if not self.root.exists():
                return []
            for path in self.root.glob(f"*/*{suffix}"):
                modality, name = path.parent.name, path.name.removesuffix(suffix)
                if path.is_file() and _is_valid(modality, name):
                    found.append((modality, name))
        return sorted(found)


def _is_valid(modality: str, name: str) -> bool:
    try:
        check_modality(modality)
        check_name(name)
    except InvalidInput:
        return False
    return True


def _hint(given: str, choices: Iterable[str]) -> str:
    """` (there are: …; did you mean …?)` for an unknown name."""
    choices = sorted(choices)
    if not choices:
        return " (the store is empty)"
    close = difflib.get_close_matches(given, choices, n=1)
    question = f"; did you mean {close[0]!r}?" if close else ""
    return f" (there are: {', '.join(choices)}{question})"
