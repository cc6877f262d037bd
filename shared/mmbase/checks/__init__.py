"""Checks of a dataset folder before anything long runs; the registry of those both tools make.

A check is one function on tables and arrays that were read before (`kit`, `catalogue`, `sets`), and
one line below. mmbench adds those of interactions and splits (`mmbench.data.checks`).
"""

from __future__ import annotations

from mmbase.checks import alignment, catalogue, kit, sets
from mmbase.checks.kit import ERROR, NOTE, WARNING, Check
from mmbase.checks.subject import Dataset

_OF_IDS = ("mixed-encodings", "altered-ids", "renumbered-ids", "altered-part-ids")

CHECKS: tuple[Check[Dataset], ...] = (
    # --- the folder and its table of items
    Check("wrong-folder", ERROR, "name the folder that holds items.* and interactions.*, as in "
          "my/catalogue/items.tsv", catalogue.wrong_folder),
    Check("unreadable", ERROR, "repair {where} as the sentence says", catalogue.unreadable),
    Check("empty-file", ERROR, "write {where} again, or remove it", catalogue.empty_files),
    Check("mixed-encodings", ERROR, "save all parts as UTF-8 before joining them, e.g. iconv -f "
          "WINDOWS-1252 -t UTF-8 PART", catalogue.mixed_encodings),
    Check("mojibake", WARNING, "save {where} from its source as UTF-8: it was UTF-8, read as "
          "Windows-1252 and saved as UTF-8 again", catalogue.mojibake),
    Check("missing-header", ERROR, "put a line with the names of the columns on top of {where}, "
          "e.g. item_id and title", catalogue.missing_header),
    Check("repeated-items", ERROR, "keep one row per item in {where}", catalogue.repeated_items),
    Check("id-blanks", WARNING, "remove the blanks around ids: they are part of the id, and `a ` "
          "is not `a`", catalogue.blanks),
    Check("number-ids", WARNING, "write ids as text where the file is made (pandas: "
          "dtype=str; Excel: format the column as text first)", catalogue.number_ids),
    # --- contents
    Check("picture-paths", WARNING, "write paths relative to the dataset folder, with /",
          catalogue.picture_paths),
    Check("picture-case", WARNING, "spell names in {where} as the files are spelt: Linux tells "
          "capitals from small letters", catalogue.picture_case),
    Check("picture-names", WARNING, "name files <item_id>.<extension>, or add a column `image` "
          "with their paths to the table of items", catalogue.picture_names),
    # --- feature sets
    Check("unimported-vectors", NOTE, "give them their ids: mmx store import --format npy "
          "--modality visual --name NAME {where} --ids IDS --data DATA", sets.unimported),
    Check("damaged-set", ERROR, "make {where} again: `mmx extract`, or `mmx store import`",
          sets.damaged),
    Check("nan-vectors", WARNING, "repair the vectors where they were made and import them again; "
          "as it is, these items count as without content", sets.not_finite),
    Check("zero-vectors", WARNING, "leave items without content out of the import: they then count "
          "as missing and --missing fills them", sets.zeros),
    Check("constant-vectors", ERROR, "make {where} again: nothing in it tells items apart",
          sets.constant),
    Check("repeated-vectors", WARNING, "look at the contents of these items (a placeholder "
          "picture, an empty text?) and remove those that are none", sets.repeated),
    Check("altered-ids", ERROR, "import the vectors again with the ids as items.* has them",
          sets.altered_ids),
    Check("renumbered-ids", ERROR, "number both from the same place: give --ids the ids as items.* "
          "has them, in the order of the rows", sets.renumbered),
    Check("other-catalogue", ERROR, "take the features of this catalogue, or extract them: `mmx "
          "extract --data DATA`", sets.other_catalogue, unless=_OF_IDS),
    Check("older-catalogue", WARNING, "compute those it lacks (`mmx extract --extend`), or import "
          "a set that has them", sets.older_catalogue, unless=_OF_IDS),
    # --- whether vectors and items belong together
    Check("shifted-rows", ERROR, "import {where} again with ids and vectors in the same order; a "
          "header line that was read as an id, or a row 0 kept for padding, shifts all",
          alignment.shifted, unless=("renumbered-ids",)),
    Check("shuffled-rows", WARNING, "check how the ids of {where} came to their vectors; `mmx "
          "extract` joins them by id. Vectors that tell nothing of items look the same",
          alignment.shuffled, unless=("constant-vectors", "shifted-rows", "renumbered-ids")),
)  # fmt: skip
"""In the order in which findings of one severity are told."""

__all__ = ["CHECKS", "Check", "Dataset", "kit"]
