"""Comparing runs: joined by id, grouped over seeds, refused if they do not belong together."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from scipy import stats
from tests.mmbench.conftest import write_dataset

from mmbench.analysis.compare import compare
from mmbench.commands.compare import compare as command
from mmbench.commands.train import train
from mmbench.errors import DataError, UsageError
from mmbench.runs.finished_runs import System, find_runs, group, require_comparable
from mmbench.runs.kinds import Facts, labels


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("compare")
    write_dataset(place / "toy", users=120)
    options = [
        "--data",
        str(place / "toy"),
        "--out",
        str(place / "runs"),
        "-q",
        "--set",
        "epochs=16",
        "--every",
        "8",
    ]
    options += ["--set", "embedding_dim=8", "--set", "lr=0.05", "--set", "reg_weight=0.0001"]
    done = CliRunner().invoke(
        train,
        ["--model", "most-popular,random,vbpr", "--seed", "1,2,3", *options],
        catch_exceptions=False,
    )
    assert done.exit_code == 0
    return place / "runs"


def call(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(command, [*arguments, "--json"], catch_exceptions=False)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_the_obvious_difference_is_found_and_said(runs: Path) -> None:
    document = call(str(runs), "--metric", "recall@20")
    assert [(one["label"], len(one["seeds"])) for one in document["systems"]] == [
        ("most-popular", 1),
        ("random", 3),
        ("vbpr", 3),
    ]
    (against,) = [
        one
        for one in document["comparisons"]
        if {one["first"], one["second"]} == {"vbpr", "random"}
    ]
    assert against["first"] == "vbpr"
    assert against["better"]
    assert (against["ahead"], against["pairs"]) == (9, 9)
    assert against["interval"][0] > 0
    done = CliRunner().invoke(command, [str(runs)], catch_exceptions=False)
    assert max(map(len, done.output.splitlines())) <= 100
    assert "vbpr is better than random" in " ".join(done.output.split())
    assert (
        "one seed only" not in done.output
    )  # most-popular has no randomness: one run is all there is
    (exact,) = [
        one
        for one in document["comparisons"]
        if {one["first"], one["second"]} == {"vbpr", "most-popular"}
    ]
    assert not exact["one_seed"]
    values = {one["label"]: one["values"]["Recall@20"] for one in document["systems"]}
    by_hand = stats.ttest_1samp(values["vbpr"], values["most-popular"][0]).pvalue
    assert exact["p_seeds"] == pytest.approx(by_hand)


def test_values_are_joined_by_user_and_not_by_row(runs: Path, tmp_path: Path) -> None:
    first, second = (
        shutil.copytree(path, tmp_path / path.name) for path in sorted(runs.glob("toy-vbpr-*"))[:2]
    )
    before = call(str(first), str(second))["comparisons"]
    frame = pd.read_parquet(second / "per_user.parquet")
    frame.sample(frac=1, random_state=0).to_parquet(second / "per_user.parquet")
    after = call(str(first), str(second))["comparisons"]
    for a, b in zip(before, after, strict=True):
        assert a["p"] == b["p"]
        assert a["difference"] == b["difference"]


def test_seeds_of_one_model_are_compared_with_each_other(runs: Path) -> None:
    document = call(*map(str, sorted(runs.glob("toy-vbpr-*"))))
    assert {one["label"] for one in document["systems"]} == {
        f"vbpr seed {seed}" for seed in (1, 2, 3)
    }
    assert all(one["p_seeds"] is None for one in document["comparisons"])


def of_users(system: System, metric: str) -> pd.Series:
    """Means over seeds of the users that have a value at every seed."""
    return system.by_seed("test", metric).dropna().mean(axis=1)


def test_means_over_seeds_are_what_is_tested(runs: Path) -> None:
    systems = {system.label: system for system in group(find_runs([runs]))}
    frames = [run.per_user("test", "Recall@20") for run in systems["vbpr"].runs]
    users = frames[0].index
    by_hand = np.mean([frame.loc[users].to_numpy() for frame in frames], axis=0)
    np.testing.assert_allclose(
        of_users(systems["vbpr"], "Recall@20").loc[users].to_numpy(), by_hand
    )
    outcome = compare(
        list(systems.values()), ["Recall@20"], baseline="random", test="t", correction="bh"
    )
    assert len(outcome) == 2


def test_what_does_not_belong_together_is_refused(runs: Path, tmp_path: Path) -> None:
    mine, theirs = sorted(runs.glob("toy-vbpr-*"))[0], tmp_path / "other"
    shutil.copytree(mine, theirs)
    record = json.loads((theirs / "run.json").read_text())
    record["dataset"]["digest"] = "0" * 32
    (theirs / "run.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match="the dataset's digest differs"):
        require_comparable(find_runs([mine, theirs]))
    done = CliRunner().invoke(command, [str(mine), str(theirs)])
    assert isinstance(done.exception, DataError)
    record["dataset"]["digest"] = json.loads((mine / "run.json").read_text())["dataset"]["digest"]
    (theirs / "run.json").write_text(json.dumps(record))
    metrics = json.loads((theirs / "metrics.json").read_text())
    metrics["test"]["Recall@20"] += 0.1
    (theirs / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(DataError, match="other results"):
        group(find_runs([mine, theirs]))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--metric", "Gini@20"], UsageError, "Recall@20"),
        (["--metric", "Recall"], UsageError, "NAME@K"),
        (["--metric", "Recal@20"], UsageError, "Recall"),
        (["--baseline", "vbprs"], UsageError, "vbpr"),
    ],
)
def test_mistakes_get_the_closest_match(
    runs: Path, arguments: list[str], error: type[Exception], message: str
) -> None:
    done = CliRunner().invoke(command, [str(runs), *arguments])
    assert isinstance(done.exception, error)
    assert message in str(done.exception)


def test_nothing_to_compare(runs: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(command, [str(next(iter(runs.glob("toy-most-popular-*"))))])
    assert "nothing to compare" in str(done.exception)
    done = CliRunner().invoke(command, [str(tmp_path)])
    assert "no finished run" in str(done.exception)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model, two learning rates, two periods of validation; metrics that prefer less."""
    place = tmp_path_factory.mktemp("kinds")
    write_dataset(place / "toy", users=60)
    options = [
        "--data",
        str(place / "toy"),
        "--out",
        str(place / "runs"),
        "-q",
        "--set",
        "epochs=2",
    ]
    options += ["--model", "bpr-mf", "--metrics", "Recall,ARP,NumRetrieved"]
    for own in (["--set", "lr=0.5"], ["--set", "lr=0.001"], ["--set", "lr=0.5", "--every", "1"]):
        assert CliRunner().invoke(train, [*options, *own], catch_exceptions=False).exit_code == 0
    return place / "runs"


def test_no_two_systems_have_one_name(kinds: Path) -> None:
    systems = group(find_runs([kinds]))
    assert {system.label for system in systems} == {
        "bpr-mf(every=10, lr=0.5)",
        "bpr-mf(every=1, lr=0.5)",
        "bpr-mf(lr=0.001)",
    }


def test_a_search_that_chose_by_the_seed_is_one_system(tmp_path: Path) -> None:
    write_dataset(tmp_path / "toy", users=60)
    options = [
        "--data",
        str(tmp_path / "toy"),
        "--out",
        str(tmp_path / "runs"),
        "-q",
        "--set",
        "epochs=2",
    ]
    options += ["--model", "bpr-mf", "--seed", "4,5,6"]
    for own in (
        ["--grid", "lr=0.5,0.6,0.7,0.8"],
        ["--set", "lr=0.001", "--set", "reg_weight=0.02"],
    ):
        assert CliRunner().invoke(train, [*options, *own], catch_exceptions=False).exit_code == 0
    found = find_runs([tmp_path / "runs"])
    assert (
        len({run.recipe.settings.lr for run in found if run.asked.grid}) > 1
    )  # else there is nothing to see here
    systems = group(found)
    labels = {"bpr-mf(lr=searched, reg_weight=0.01)", "bpr-mf(lr=0.001, reg_weight=0.02)"}
    assert {system.label for system in systems} == labels
    assert {len(system.runs) for system in systems} == {3}
    done = CliRunner().invoke(command, [str(tmp_path / "runs")], catch_exceptions=False)
    assert max(map(len, done.output.splitlines())) <= 100
    assert "…" not in done.output.replace(" … ", "")  # no number is cut
    text = " ".join(done.output.split())
    assert all(system.label in text for system in systems)  # by what differs, not by a number


MIXED = ("--allow-mixed", "--metric", "Recall@20")
STRICT = ("--only", "split=random:0.2,0.2,42", "--only", "protocol=strict")


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models on one modality each; a third under another protocol and on another split."""
    place = tmp_path_factory.mktemp("several")
    write_dataset(place / "toy")
    options = ["--data", str(place / "toy"), "--out", str(place / "runs"), "-q"]
    options += ["--metrics", "Recall", "--cutoffs", "20"]
    for own in (
        ["--model", "vbpr,freedom", "--set", "epochs=1", "--features", "visual=toy"],
        ["--model", "vbpr,freedom", "--set", "epochs=1", "--features", "textual=words"],
        ["--model", "most-popular", "--protocol", "paper"],
        ["--model", "most-popular", "--split", "random:0.3,0.1"],
    ):
        assert CliRunner().invoke(train, [*options, *own], catch_exceptions=False).exit_code == 0
    return place / "runs"


def test_systems_are_labelled_by_what_differs(several: Path) -> None:
    document = call(str(several), "--metric", "Recall@20", *STRICT)
    assert {one["label"] for one in document["systems"]} == {
        "vbpr(visual)",
        "vbpr(textual)",
        "freedom(visual)",
        "freedom(textual)",
    }
    assert document["of"] == ["toy, split random:0.2,0.2,42, protocol strict"]


def test_kinds_of_runs_are_named_and_can_be_chosen(several: Path) -> None:
    done = CliRunner().invoke(command, [str(several)])
    assert isinstance(done.exception, DataError)
    first, *others = str(done.exception).splitlines()
    assert "runs of 3 kinds" in first
    assert [line.rpartition(": ")[0].strip() for line in others] == [
        "toy, split random:0.2,0.2,42, protocol paper",
        "toy, split random:0.2,0.2,42, protocol strict",
        "toy, split random:0.3,0.1,42, protocol strict",
    ]
    labels = {one["label"] for one in call(str(several), *MIXED)["systems"]}
    assert "most-popular(split=random:0.2,0.2,42, protocol=paper)" in labels
    for wrong, told in (
        ("split=loo", "random:0.3,0.1,42"),
        ("model=vbpr", "dataset=…"),
        ("protocol", "protocol=…"),
    ):
        done = CliRunner().invoke(command, [str(several), "--only", wrong])
        assert isinstance(done.exception, UsageError)
        assert told in str(done.exception)


@pytest.mark.parametrize(
    ("mine", "other", "expected"),
    [
        ({"features": {"visual": "a"}}, {"features": {"visual": "b"}}, "x(visual=a)"),
        ({"features": {"visual": "a"}}, {"features": {"visual": "a", "audio": "b"}}, "x(visual)"),
        ({"features": {"visual": "a"}, "settings": {"lr": 1}, "searched": frozenset({"lr"})},
         {"features": {}, "settings": {"lr": 2}, "searched": frozenset({"lr"})}, "x(visual)"),
        ({"settings": {"lr": 0.1}}, {"settings": {"lr": 0.2}, "others": {"every": 1}}, "x(lr=0.1)"),
        ({"others": {"every": 1, "a": 1}}, {"others": {"every": 2, "a": 1}}, "x(every=1)"),
        ({"others": {"masks": []}}, {"others": {"masks": ["a"]}}, "x(masks=none)"),
        ({"kind": {"protocol": "p"}, "others": {"digest": 1}},
         {"kind": {"protocol": "q"}, "others": {"digest": 2}}, "x(protocol=p)"),
    ],
)  # fmt: skip
def test_labels(mine: dict[str, Any], other: dict[str, Any], expected: str) -> None:
    plain: dict[str, Any] = {
        "model": "x", "features": {}, "settings": {}, "searched": frozenset(), "others": {}
    }  # fmt: skip
    unrelated = Facts(**{**plain, "model": "y", "kind": mine.get("kind", {})})
    told = labels([Facts(**{**plain, **mine}), Facts(**{**plain, **other}), unrelated])
    assert told[0] == expected
    assert told[1] != expected
    assert not told[2].startswith("y(") or "kind" in mine


def test_less_is_better_where_the_metric_says_so(kinds: Path) -> None:
    a, b = (system for system in group(find_runs([kinds])) if "every=1," not in system.label)
    (arp,) = compare([a, b], ["ARP@20"])
    low, high = sorted((a, b), key=lambda system: system.values("test", "ARP@20"))
    assert (arp.first, arp.second) == (low.label, high.label)
    assert arp.difference < 0
    d = of_users(low, "ARP@20") - of_users(high, "ARP@20")
    assert arp.superiority == pytest.approx(np.mean((d < 0) + 0.5 * (d == 0)))
    assert (arp.ahead, arp.pairs) == (1, 1)
    (neither,) = compare([a, b], ["NumRetrieved@20"])
    assert "better" not in dataclasses.replace(neither, better=True).verdict


def test_everything_said_is_about_the_users_that_have_a_value_in_both(
    kinds: Path, tmp_path: Path
) -> None:
    """A metric that some users of one system lack has a mean over other users than the test."""
    shutil.copytree(kinds, tmp_path / "runs")
    a, b = (
        system for system in group(find_runs([tmp_path / "runs"])) if "every=1," not in system.label
    )
    path = a.runs[0].path / "per_user.parquet"
    frame = pd.read_parquet(path)
    rows = frame.index[frame["split"] == "test"]
    best = frame.loc[rows, "Recall@20"].nlargest(15).index  # without them the order turns
    frame.loc[best, "Recall@20"] = np.nan
    frame.to_parquet(path)
    left_out = frame.loc[best, "user_id"]
    (one,) = compare([a, b], ["Recall@20"])
    assert (one.n_users, one.n_others) == (len(rows) - 15, 15)
    mine, theirs = (
        of_users(system, "Recall@20").drop(left_out, errors="ignore").mean() for system in (a, b)
    )
    assert one.first == (a.label if mine > theirs else b.label)
    assert one.difference == pytest.approx(abs(mine - theirs))
    assert one.interval[0] <= one.difference <= one.interval[1]
    assert f"over the {len(rows) - 15} users that have a value in both, 15 do not" in one.verdict
    done = CliRunner().invoke(
        command, [str(tmp_path / "runs"), "--metric", "Recall@20"], catch_exceptions=False
    )
    assert f"test over {len(rows) - 15} to {len(rows)} users" in done.output


@pytest.mark.parametrize(
    ("name", "content"), [("per_user.parquet", "junk"), ("metrics.json", "[]"), ("run.json", "{")]
)
def test_a_damaged_run_is_named(kinds: Path, tmp_path: Path, name: str, content: str) -> None:
    shutil.copytree(kinds, tmp_path / "runs")
    for folder in (tmp_path / "runs").iterdir():
        (folder / name).write_text(content)
    with pytest.raises(DataError, match=name):
        compare(group(find_runs([tmp_path / "runs"])), ["Recall@20"])


def test_an_infinite_effect_is_still_json(kinds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmbench.analysis.statistics.effect_size", lambda d: float("inf"))
    done = CliRunner().invoke(
        command, [str(kinds), "--metric", "Recall@20", "--json"], catch_exceptions=False
    )
    assert "Infinity" not in done.stdout
    assert json.loads(done.stdout)["comparisons"][0]["effect"] is None
