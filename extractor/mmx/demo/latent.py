"""The latent part of the demonstration catalogue: styles, tastes, popularity, interactions.

Pure arrays in, arrays out. An item is a point `z` in a space of `N_FACTORS` factors, scattered
widely around one of twelve style centres. A user has one to three favourite points in the same
space, each that of some item. There are too few interactions to learn where every item lies from
who took it, and content shows it: that is what makes content worth something here, beside a
well-tuned model without it.

User u takes items without replacement with probability proportional to exp(utility), where

    utility(u, i) = -|z_i - nearest favourite of u|² / (2 WIDTH²) + POPULARITY_WEIGHT * log
    popularity_i

except that a share `WHIM` of every user's picks follows popularity alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmx.demo.words import STYLES

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

N_FACTORS = 6
SCATTER = 0.8  # standard deviation of an item around its style's centre; the centres have 1
WIDTH = 0.7  # how far from a favourite point an item may lie and still please
POPULARITY_SIGMA = 1.0  # of the log-normal popularity
POPULARITY_WEIGHT = 0.5
WHIM = 0.1
MIN_PICKS = 5
MEAN_EXTRA_PICKS = 1.5  # beyond MIN_PICKS, geometric: most users have few, some many
FIRST_SECOND = 1_546_300_800  # 2019-01-01 UTC
LAST_SECOND = 1_704_067_200  # 2024-01-01 UTC


@dataclass(frozen=True)
class Space:
    """The hidden space, and how it shows: catalogues of one space differ in items and users alone.

    Attributes:
        centres: Centre of each style, shape (n_styles, N_FACTORS).
        look: Rotation of the factors to the knobs of pictures, (N_FACTORS, N_FACTORS).
        sound: The same for sounds.
    """

    centres: FloatArray
    look: FloatArray
    sound: FloatArray


@dataclass(frozen=True)
class Items:
    """Latent `style (n,)`, `factors (n, N_FACTORS)` and `popularity (n,)` > 0 of the items."""

    style: IntArray
    factors: FloatArray
    centres: FloatArray
    popularity: FloatArray


@dataclass(frozen=True)
class Picks:
    """Interactions: `user_idx`, `item_idx`, `rating` in 1 … 5, `timestamp` in Unix seconds."""

    user_idx: IntArray
    item_idx: IntArray
    rating: IntArray
    timestamp: IntArray


def draw_space(
    items: np.random.Generator, looks: np.random.Generator, sounds: np.random.Generator
) -> Space:
    """Draw a space: the first numbers of the streams that go on with items, looks and sounds."""
    centres = items.standard_normal((len(STYLES), N_FACTORS))
    rotations = (np.linalg.qr(rng.standard_normal((N_FACTORS,) * 2))[0] for rng in (looks, sounds))
    return Space(centres, *rotations)


def draw_items(n_items: int, centres: FloatArray, rng: np.random.Generator) -> Items:
    """Draw items, about equally many per style, with a log-normal popularity apart from style."""
    style = rng.permutation(np.arange(n_items) % len(STYLES))
    factors = centres[style] + SCATTER * rng.standard_normal((n_items, N_FACTORS))
    return Items(style, factors, centres, rng.lognormal(0.0, POPULARITY_SIGMA, n_items))


def controls(
    factors: FloatArray, rotation: FloatArray, rng: np.random.Generator, *, noise: float
) -> FloatArray:
    """Mix the factors to `N_FACTORS` knobs in (0, 1) per item, as they show in one modality.

    Args:
        factors: Shape (n, N_FACTORS).
        rotation: The modality's own, shape (N_FACTORS, N_FACTORS).
        rng: Decides the noise.
        noise: Standard deviation of the modality's own part; the factors have about 1.
    """
    seen = factors @ rotation + noise * rng.standard_normal(factors.shape)
    return np.asarray(1.0 / (1.0 + np.exp(-1.5 * seen)))


def style_shares(items: Items) -> FloatArray:
    """Return the styles of each item, (n, n_styles), rows sum to 1: softmax over distances."""
    distance = ((items.factors[:, None, :] - items.centres[None]) ** 2).sum(axis=2)
    weight = np.exp(-(distance - distance.min(axis=1, keepdims=True)))
    return np.asarray(weight / weight.sum(axis=1, keepdims=True))


def draw_picks(items: Items, n_users: int, rng: np.random.Generator) -> Picks:
    """Draw at least `MIN_PICKS` different items per user, sorted by user and time."""
    n_items = len(items.factors)
    most = max(MIN_PICKS, n_items // 4)
    log_popularity = POPULARITY_WEIGHT * np.log(items.popularity)
    columns: list[tuple[IntArray, IntArray, IntArray, IntArray]] = []
    for user in range(n_users):
        n_picks = min(most, MIN_PICKS + int(rng.geometric(1.0 / (1.0 + MEAN_EXTRA_PICKS))) - 1)
        n_tastes = 1 + int(rng.binomial(2, 0.35))
        tastes = items.factors[rng.choice(n_items, n_tastes, replace=False)]
        distance = ((items.factors[:, None, :] - tastes[None]) ** 2).sum(axis=2).min(axis=1)
        liking = -distance / (2.0 * WIDTH**2)
        # Gumbel top-k is sampling without replacement in proportion to exp(utility).
        order = np.argsort(-(liking + log_popularity + rng.gumbel(size=n_items)), kind="stable")
        whims = np.argsort(-(log_popularity + rng.gumbel(size=n_items)), kind="stable")
        n_whims = int(rng.binomial(n_picks, WHIM))
        taken = list(dict.fromkeys([*whims[:n_whims].tolist(), *order.tolist()]))[:n_picks]
        picked = rng.permutation(np.asarray(taken, dtype=np.int64))
        pleasure = (
            4.6 + 0.12 * np.maximum(liking[picked], -20.0) + 0.6 * rng.standard_normal(n_picks)
        )
        start = int(rng.integers(FIRST_SECOND, LAST_SECOND - 86_400 * 365))
        gaps = rng.exponential(86_400 * 300 / n_picks, n_picks).astype(np.int64) + 1
        times = np.minimum(start + np.cumsum(gaps), LAST_SECOND)
        ratings = np.clip(np.rint(pleasure), 1, 5).astype(np.int64)
        columns.append((np.full(n_picks, user), picked, ratings, times))
    return Picks(*(np.concatenate(part) for part in zip(*columns, strict=True)))
