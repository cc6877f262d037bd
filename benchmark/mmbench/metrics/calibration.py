"""Calibration: whether a list has the topics of its user's history, in the same shares.

Source: Steck, Calibrated recommendations (RecSys 2018). Every item of the history and of the list
weighs the same; an item's weight is shared evenly among its topics, and items without a topic are
left out.
"""

from __future__ import annotations

import math

import numpy as np

from mmbench.core.interactions import Index
from mmbench.metrics.item_data import Mask, Topics, Values, required
from mmbench.metrics.judged_lists import Judged, over_evaluated
from mmbench.metrics.ranking import divide

ALPHA = 0.01
"""Share of the history's distribution mixed into the list's, which keeps the divergence finite."""


@over_evaluated(
    "Miscalibration",
    formula="mean over E of Σ_g p(g) ln(p(g) / (0.99 q(g) + 0.01 p(g))), p and q the topic shares "
    "of T_u and of L[:k]",
    source="Kullback-Leibler divergence C_KL with α = 0.01; Steck, Calibrated recommendations "
    "(RecSys 2018)",
    higher_is_better=False,
    bounds=(0.0, -math.log(ALPHA)),
    aliases=("Calibration", "CalibrationKL", "CKL"),
    needs=("topics",),
)
def miscalibration(lists: Judged, k: int) -> Values:
    """Kullback-Leibler divergence of the list's topics from the history's, in nats; 0 is best.

    Not defined where history or list have no item with a topic.

    Raises:
        UsageError: The lists were judged without topics.
    """
    topics = required(lists.topics, "topics", "Miscalibration")
    names, topic = np.unique(topics.topics, return_inverse=True)
    width = max(names.size, 1)
    # The sum runs over the topics of the history: where p(g) = 0 the term is 0.
    known, p, has_history = _shares(topics, topic, width, lists.trained, lists.n_users)
    listed, shares, has_list = _shares(topics, topic, width, lists.listed(k), lists.n_users)
    # q(g) of these topics; 0 for those that the list lacks.
    q = np.zeros(known.size)
    if listed.size:
        place = np.minimum(np.searchsorted(listed, known), listed.size - 1)
        q = np.where(listed[place] == known, shares[place], 0.0)
    # Steck's q~ = (1 - α) q + α p in the place of q.
    terms = p * np.log(p / ((1.0 - ALPHA) * q + ALPHA * p))
    divergence = np.bincount(known // width, terms, lists.n_users)
    divergence = np.maximum(divergence, 0.0)  # rounding may leave -1e-17
    return np.where(has_history & has_list, divergence, np.nan)


def _shares(
    topics: Topics, topic: Index, width: int, pairs: tuple[Index, Index], n_users: int
) -> tuple[Index, Values, Mask]:
    """Each user's topic shares: `user * width + topic` ascending, the share, and who has any."""
    users, items = pairs
    place, pair = topics.of(items)
    n_topics = np.bincount(place, minlength=items.size)
    key, inverse = np.unique(users[place] * width + topic[pair], return_inverse=True)
    # An item with n topics gives 1 / n to each of them.
    weight = np.bincount(inverse, 1.0 / n_topics[place], key.size)
    n_with_topic = np.bincount(users[n_topics > 0], minlength=n_users)
    return key, divide(weight, n_with_topic[key // width]), n_with_topic > 0
