"""CPU seconds of one evaluation of given lists, of the exact top k, and of ranking everything.

Synthetic data of the sizes of Amazon Office, Toys and Clothing; validation and test are both
scored.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmbench.core.interactions import HeldOut, Index, TrainSet
from mmbench.evaluation.ranking import rank, rank_each
from mmbench.evaluation.scoring import RankedLists, Scores, evaluate, make_slices, score_slices
from mmbench.metrics import ItemVectors, Metric, resolve
from mmbench.ops.dense import top_k

pytestmark = [pytest.mark.slow, pytest.mark.benchmark(timer=time.process_time, warmup=True)]


@dataclass(frozen=True)
class Size:
    n_users: int
    n_items: int
    n_train: int
    n_valid: int
    n_test: int


SIZES = {
    "office": Size(4_905, 2_414, 31_118, 9_720, 12_420),
    "toys": Size(19_412, 11_924, 96_258, 30_000, 40_000),
    "clothing": Size(39_387, 23_033, 197_338, 41_189, 40_150),
}


def pairs(rng: np.random.Generator, size: Size, n: int) -> tuple[Index, Index]:
    """User and item rows with a long tail."""
    items = (size.n_items * rng.random(n) ** 2.5).astype(np.int64)
    return rng.integers(0, size.n_users, n), items


def problem(size: Size, k: int = 20) -> tuple[TrainSet, tuple[HeldOut, HeldOut], Index, Index]:
    rng = np.random.default_rng(0)
    train = TrainSet.from_pairs(*pairs(rng, size, size.n_train), size.n_users, size.n_items)
    held_out = [
        HeldOut.from_pairs(*pairs(rng, size, n), rng.integers(1, 6, n) * 1.0)
        for n in (size.n_valid, size.n_test)
    ]
    # One random place in each of k strips of the catalogue: distinct, and no user's list like
    # another's.
    strip = size.n_items // k
    items = rng.permutation(size.n_items)[
        np.arange(k) * strip + rng.integers(0, strip, (size.n_users, k))
    ]
    return train, (held_out[0], held_out[1]), np.arange(size.n_users), items


def scoring(size: Size, metrics: list[Metric]) -> Callable[[], list[Scores]]:
    """Evaluate both splits once, from plain arrays; nothing is kept from the call before."""
    train, splits, users, items = problem(size)

    def run() -> list[Scores]:
        fresh = TrainSet(train.users, train.items, train.n_users, train.n_items)
        lists = RankedLists(users, items)
        return [
            evaluate(lists, fresh, split, metrics=metrics, cutoffs=(10, 20)) for split in splits
        ]

    return run


@pytest.mark.parametrize(
    ("name", "metrics", "most_s"),
    [
        ("office", "paper", 0.06),
        ("toys", "paper", 0.35),
        ("office", "all", 0.06),
        ("toys", "all", 0.35),
    ],
)
def test_scoring_given_lists(benchmark: Any, name: str, metrics: str, most_s: float) -> None:
    found = benchmark(scoring(SIZES[name], resolve([metrics])))
    assert all(value is not None for evaluation in found for value in evaluation.overall.values())
    assert benchmark.disabled or benchmark.stats.stats.min <= most_s


def test_scoring_costs_the_same_per_user_however_many_there_are() -> None:
    def seconds(size: Size) -> float:
        run = scoring(size, resolve(["all"]))
        run()
        laps = []
        for _ in range(5):
            start = time.process_time()
            run()
            laps.append(time.process_time() - start)
        return min(laps) / size.n_users

    toys = SIZES["toys"]
    larger = Size(
        8 * toys.n_users, toys.n_items, 8 * toys.n_train, 8 * toys.n_valid, 8 * toys.n_test
    )
    few, many = seconds(toys), seconds(larger)
    print(
        f"microseconds per user: {1e6 * few:.2f} with {toys.n_users:,}, {1e6 * many:.2f} with "
        f"{larger.n_users:,}"
    )
    assert many < 2 * few  # larger arrays leave the processor's caches; nothing else may grow


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("select", ["mmbench", "torch"])
def test_the_20_best_of_23016_for_1024_users(benchmark: Any, select: str, ties: bool) -> None:
    scores = torch.randn(1_024, 23_016, generator=torch.Generator().manual_seed(0))
    if ties:
        scores = (scores * 10).round()
    benchmark(
        (lambda: top_k(scores, 20))
        if select == "mmbench"
        else (lambda: torch.topk(scores, 20, dim=1))
    )


class PeakMemory:
    """Peak memory of this process since the object was made, in MiB above the level then."""

    def __init__(self) -> None:
        try:
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        except OSError:
            pytest.skip("peak memory can only be reset on Linux")
        self.before = self._status("VmRSS")

    @staticmethod
    def _status(key: str) -> float:
        lines = dict(
            line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines()
        )
        return int(lines[key].split()[0]) / 1024

    def grown_mib(self) -> float:
        return self._status("VmHWM") - self.before


@pytest.mark.parametrize("protocol", ["paper", "strict"])
def test_ranking_and_scoring_everything(benchmark: Any, protocol: str) -> None:
    """Rank all users of Clothing from embeddings; all metrics at two cut-offs on both splits."""
    size = SIZES["clothing"]
    train, splits, users, _ = problem(size)
    generator = torch.Generator().manual_seed(0)
    of_users = torch.randn(size.n_users, 64, generator=generator)
    columns = torch.randn(size.n_items, 64, generator=generator).T.contiguous()
    masks = (None, splits[0]) if protocol == "strict" else (None,)
    memory = PeakMemory()

    def run() -> list[Scores]:
        lists = rank_each(lambda block: of_users[block] @ columns, train, users, k=20, masks=masks)
        return [
            evaluate(
                lists[min(number, len(lists) - 1)],
                train,
                split,
                metrics=resolve(["all"]),
                cutoffs=(10, 20),
            )
            for number, split in enumerate(splits)
        ]

    benchmark.pedantic(run, rounds=1)
    print(f"peak memory above the embeddings, {protocol}: {memory.grown_mib():.0f} MiB")
    assert memory.grown_mib() <= 600
    assert protocol == "strict" or benchmark.disabled or benchmark.stats.stats.min <= 8.0


def test_slices_of_both_splits(benchmark: Any) -> None:
    """Cost of a run's six metrics by popularity, activity, cold items and two modalities."""
    size = SIZES["clothing"]
    train, splits, users, items = problem(size)
    lists, metrics = RankedLists(users, items), resolve(["paper"])
    has = {
        name: np.random.default_rng(0).random(size.n_items) < 0.9 for name in ("visual", "textual")
    }

    def run() -> None:
        slices = make_slices(train, size.n_items, size.n_users, has)
        for split in splits:
            score_slices(
                slices,
                split,
                lambda rows: evaluate(lists, train, rows, metrics=metrics, cutoffs=(10, 20)),
            )

    benchmark.pedantic(run, rounds=1)


@pytest.mark.parametrize("dim", [512, 4096])
def test_distances_between_listed_items(benchmark: Any, dim: int) -> None:
    """ILD and unexpectedness of all lists at two cut-offs, in vectors of a given width."""
    size = SIZES["clothing"]
    train, splits, users, items = problem(size)
    vectors = np.random.default_rng(0).standard_normal((size.n_items, dim), np.float32)
    content = ItemVectors(vectors, np.ones(size.n_items, bool))
    lists, metrics = RankedLists(users, items), resolve(["ILD", "Unexpectedness"])
    memory = PeakMemory()
    benchmark.pedantic(
        lambda: evaluate(
            lists, train, splits[1], metrics=metrics, cutoffs=(10, 20), content=content
        ),
        rounds=1,
    )
    print(f"peak memory above the vectors: {memory.grown_mib():.0f} MiB")
    assert memory.grown_mib() <= 600


def test_a_million_users_and_half_a_million_items_stream_through() -> None:
    """Rank from embeddings: neither memory nor cost per user grows with the number of users."""
    n_items, dim = 500_000, 64
    columns = torch.randn(dim, n_items)

    def cost(n_users: int, n_ranked: int) -> tuple[float, float, list[float]]:
        rng = np.random.default_rng(0)
        train = TrainSet.from_pairs(
            np.repeat(np.arange(n_users), 5),
            rng.integers(0, n_items, 5 * n_users),
            n_users,
            n_items,
        )
        assert train.indptr.size == n_users + 1  # made once per training set, not once per ranking
        of_users = torch.randn(n_users, dim)
        chosen = np.linspace(0, n_users - 1, n_ranked).astype(np.int64)
        memory, start = PeakMemory(), time.process_time()
        held: list[float] = []  # what this process holds at each block, in MiB

        def score(block: torch.Tensor) -> torch.Tensor:
            held.append(PeakMemory._status("VmRSS"))
            return of_users[block] @ columns

        rank(score, train, chosen, k=20)
        return 1e3 * (time.process_time() - start) / n_ranked, memory.grown_mib(), held

    cost(10_000, 100)
    few, many = cost(10_000, 1_000), cost(1_000_000, 1_000)
    growth = max(many[2][4:]) - many[2][3]
    print(
        f"of 10,000 users: {few[0]:.1f} ms and of 1,000,000: {many[0]:.1f} ms per user, 500,000 "
        "items each"
    )
    print(
        f"peak memory above the embeddings: {many[1]:.0f} MiB; growth over the last "
        f"{len(many[2]) - 4} blocks: {growth:.1f} MiB"
    )
    assert growth < 16
    assert many[1] <= 256
    assert many[0] < 1.5 * few[0]


def test_memory_does_not_grow_with_the_users() -> None:
    n_items, dim = 500_000, 8
    of_items = torch.randn(n_items, dim)

    def peak_mib(n_users: int) -> float:
        train = TrainSet.from_pairs(np.arange(n_users), np.arange(n_users), n_users, n_items)
        of_users = torch.randn(n_users, dim)
        memory = PeakMemory()
        rank(lambda block: of_users[block] @ of_items.T, train, np.arange(n_users), k=20)
        return memory.grown_mib()

    peak_mib(40)
    few, many = peak_mib(200), peak_mib(2_000)
    print(
        f"peak memory: {few:.0f} MiB for 200 users, {many:.0f} MiB for 2,000, of 500,000 items each"
    )
    assert many - few < 32
