"""Content of the training pairs, their reviews say, joined by user and item: of no other pair.

A set of interactions may hold the reviews of all pairs, those of validation and test too. Vectors
are looked up by the ids of the training pairs, so that no other vector gets as far as a model. Two
kinds of sets are refused, for in them held-out reviews are part of what is looked up:

- one that has a vector of a training pair that is held out as well (a repeated interaction): a set
  has one row per pair, which doesn't say whose review it is;
- one of an encoder that was fitted on all of the set's texts, if these are not those of training
  pairs alone: each of its vectors depends on all texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mmbase.layout import counted
from mmbench.data.dataset import Split
from mmbench.data.features import ItemFeatures, load_features
from mmbench.data.treatment import Treatment
from mmbench.errors import DataError

_ALONE = (
    "extract them from a table of the training reviews alone: `mmx extract --source interaction "
    "--items-file FILE --name NAME` (docs/reviews.md)"
)


def load_reviews(
    root: Path, split: Split, wanted: Mapping[str, str], treatment: Treatment
) -> dict[str, ItemFeatures]:
    """Load the vectors of the training pairs, in their order, and treat them.

    Args:
        root: The store, `<dataset>/features`.
        split: Whose training pairs; of the others only who they are is looked at.
        wanted: As for `load_features`.
        treatment: What is done to the vectors.

    Raises:
        UsageError: As for `load_features`.
        DataError: As for `load_features`, or held-out reviews would be read.
    """
    training, train = split.training, split.training.train
    users, items = training.user_ids[train.users], training.item_ids[train.items]
    pairs = list(zip(users.tolist(), items.tolist(), strict=True))
    found = load_features(
        root, pairs, wanted, treatment=treatment, train=train, source="interaction"
    )
    held_out = np.zeros(len(pairs), bool)
    for rows in (training.valid, split.test.rows):
        known = (rows.users < train.n_users) & (rows.items < train.n_items)
        keys = rows.users[known] * train.n_items + rows.items[known]
        held_out |= np.isin(train.keys, keys)
    for modality, one in found.items():
        where = f"{root}: {modality}={one.name}"
        twice = np.flatnonzero(held_out & one.present)
        if twice.size:
            user, item = pairs[twice[0]]
            raise DataError(
                f"{where}: {counted(twice.size, 'training pair')} with a vector, e.g. {user!r} and "
                f"{item!r}, {'is' if twice.size == 1 else 'are'} held out too, and the vector may "
                "be of the held-out review; make a split without repeated pairs: `mmbench data "
                "split --filter dedup:last`"
            )
        others = one.n_stored - int(one.present.sum()) - one.n_masked
        if others and _fitted(one.provenance):
            raise DataError(
                f"{where}: its encoder was fitted on the texts of the set, {others:,} of which are "
                f"not of training pairs: held-out reviews would shape every vector; {_ALONE}"
            )
    return found


def _fitted(provenance: object) -> bool:
    """Whether an encoder behind the vectors, or behind a part of them, learned from their texts."""
    if isinstance(provenance, Mapping):
        how = provenance.get("preprocessing")
        if isinstance(how, Mapping) and how.get("fit"):
            return True
        provenance = list(provenance.values())
    return isinstance(provenance, list) and any(map(_fitted, provenance))
