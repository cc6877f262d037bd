"""The checks of `mmbench data validate`: those of every dataset folder, of interactions, of splits.

A check is one function, which reads no file, and one line below; see `mmbase.checks`.
"""

from __future__ import annotations

from mmbase.checks import CHECKS as OF_FOLDERS
from mmbase.checks.kit import ERROR, NOTE, WARNING, Check
from mmbench.data.checks import logs, splits
from mmbench.data.checks.reading import Interactions

CHECKS: tuple[Check[Interactions], ...] = (
    *OF_FOLDERS,
    # --- how interactions are written
    Check("unnamed-columns", WARNING, "put a line with names on top of {where}, e.g. user_id, "
          "item_id, rating, timestamp; or say the places: --columns user_id=1,item_id=2",
          logs.unnamed_columns),
    Check("repeated-header", ERROR, "remove the line, or read the files one by one",
          logs.repeated_header),
    Check("decimal-commas", ERROR, "write ratings with a point (4.5); a comma is understood in "
          "tables separated by semicolons", logs.decimal_commas),
    Check("bad-ratings", ERROR, "write numbers, or give a column that is no rating another name",
          logs.bad_ratings, unless=("repeated-header",)),
    Check("rating-scale", WARNING, "correct these rows of {where}, or leave them out",
          logs.rating_scale),
    Check("milliseconds", NOTE, "nothing: they are kept as seconds, exact to the nanosecond. If "
          "they are no times, name the column that holds them: --columns timestamp=NAME",
          logs.milliseconds),
    Check("mixed-time-units", ERROR, "write all times of {where} in one unit: divide milliseconds "
          "by 1000", logs.mixed_units),
    Check("bad-times", ERROR, "write Unix times or ISO dates in every row", logs.bad_times,
          unless=("repeated-header",)),
    # --- their ids
    Check("unusable-ids", ERROR, "every row needs a user and an item", logs.unusable_ids),
    Check("id-blanks", WARNING, "remove the blanks around ids of {where}: they are part of the id",
          logs.id_blanks),
    Check("number-ids", WARNING, "write ids as text where the file is made (pandas: dtype=str)",
          logs.number_ids),
    Check("swapped-columns", ERROR, "swap the names of the two columns, or say it: --columns "
          "user_id=NAME,item_id=NAME", logs.swapped),
    Check("altered-item-ids", ERROR, "read ids as text wherever a program makes {where} (pandas: "
          "dtype=str), so that they stay as in items.*", logs.altered_items),
    Check("altered-part-ids", ERROR, "make the parts of the split with one program that reads ids "
          "as text, e.g. `mmbench data split`", logs.altered_parts),
    Check("unknown-items", WARNING, "add them to items.*, or leave their rows out; they have no "
          "content", logs.unknown_items, unless=("repeated-header", "mixed-encodings",
          "swapped-columns", "altered-item-ids", "unusable-ids")),
    # --- their rows
    Check("duplicate-rows", WARNING, "keep one of them: `mmbench data filter --filter dedup:last`",
          logs.duplicates),
    Check("dominant-id", WARNING, "look whether it stands for many (a guest, a robot, an empty "
          "cell written as a word) and leave its rows out", logs.dominant),
    # --- splits
    Check("test-in-train", ERROR, "make the split anew, e.g. `mmbench data split DATA`; repeated "
          "rows of the interactions come first: --filter dedup:last", splits.shared_rows),
    Check("unseen-users", WARNING, "only models that read histories rank for them; `mmbench data "
          "split` by user leaves rows of every user in train", splits.unseen_users),
    Check("held-out-content", NOTE, "make the set of training's rows alone: `mmx extract --source "
          "interaction --split SPLIT`", splits.held_out_content),
    Check("other-split", ERROR, "fine-tune the encoder on the training part of this split",
          splits.other_split),
)  # fmt: skip
"""In the order in which findings of one severity are told."""
