"""A catalogue that grows, whose new rows alone are computed; and shards that are merged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.mmx.extraction.test_extract import FakeEncoder, Recorder, dataset, go

from mmstore import ProvenanceMismatch, Status
from mmstore.reader import FeatureSet
from mmx.config import RunConfig
from mmx.errors import DataError, UsageError
from mmx.extraction.summary import Summary
from mmx.vectors.merge import merge

OLD = {"b": "two", "d": "", "a": "bad one", "c": "a title of some length"}
NEW = {"x": "ex", "b": "two", "a": "bad one", "y": "why", "c": OLD["c"], "d": "", "z": "bad"}


class Alone(FakeEncoder):
    """Its vectors depend on the text alone, not on who shares a batch."""

    def __init__(self, on_encode: Callable[[int], None] = lambda n: None) -> None:
        super().__init__()
        self.on_encode = on_encode
        self.encoded: list[str] = []

    def encode(self, batch: Sequence[str]) -> NDArray[np.float32]:
        features = super().encode(batch)
        self.encoded += sorted(batch)
        features[:, 2] = 1
        return features


def rows(path: Path) -> dict[str, tuple[int, bytes]]:
    with FeatureSet(path) as features:
        return {
            str(item): (int(status), vector.tobytes())
            for ids, vectors, statuses in features.iter_batches()
            for item, vector, status in zip(ids, vectors, statuses, strict=True)
        }


def grown(tmp_path: Path, **run: Any) -> tuple[Alone, Summary]:
    go(dataset(tmp_path, OLD), Alone())
    encoder = Alone()
    return encoder, go(dataset(tmp_path, NEW), encoder, extend=True, **run)


def test_only_new_items_are_computed_and_the_set_is_that_of_one_run(tmp_path: Path) -> None:
    progress = Recorder()
    encoder, summary = grown(tmp_path / "grown", progress=progress)
    whole = go(dataset(tmp_path / "whole", NEW), Alone())
    assert summary.digest == whole.digest
    assert rows(summary.path) == rows(whole.path)
    assert summary.errors == whole.errors
    assert progress.advanced == 3
    assert sorted(encoder.encoded) == ["ex", "why"]
    assert any("4 of 7 rows are taken over" in note for note in progress.notes)
    with FeatureSet(summary.path) as first, FeatureSet(whole.path) as second:
        assert first.provenance["input"] == second.provenance["input"]
        assert first.errors() == second.errors()
    again = go(tmp_path / "grown", Alone(), extend=True)
    assert again.already_complete


def test_without_a_finished_set_or_new_items_extend_changes_nothing(tmp_path: Path) -> None:
    first = go(dataset(tmp_path, OLD), Alone(), extend=True)
    assert not first.already_complete
    assert go(tmp_path, Alone(), extend=True).already_complete


def test_failed_rows_are_tried_again_only_on_request(tmp_path: Path) -> None:
    encoder, summary = grown(tmp_path, retry_failed=True)
    assert "bad one" in encoder.loaded
    assert summary.counts.corrupt == 2


def test_a_killed_extension_goes_on(tmp_path: Path) -> None:
    go(dataset(tmp_path / "grown", OLD), Alone())
    path = tmp_path / "grown/features/textual/fake.h5"
    before = rows(path)
    items = {**NEW, **{f"n{number}": f"text {number}" for number in range(600)}}
    dataset(tmp_path / "grown", items)

    def killed(n: int) -> None:
        if n > 140:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "grown", Alone(on_encode=killed), extend=True)
    assert rows(path) == before  # the finished set still stands
    with pytest.raises(ProvenanceMismatch, match="--extend computes these alone"):
        go(tmp_path / "grown", Alone())
    summary = go(tmp_path / "grown", encoder := Alone(), extend=True)
    assert 0 < len(encoder.encoded) < 600
    assert summary.digest == go(dataset(tmp_path / "whole", items), Alone()).digest
    assert {one.name for one in path.parent.iterdir()} == {
        one.name for one in (tmp_path / "whole/features/textual").iterdir()
    }


def test_a_join_that_was_killed_computes_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    go(dataset(tmp_path / "grown", OLD), Alone())
    dataset(tmp_path / "grown", NEW)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("mmx.extraction.extending.copy_rows", killed)
        go(tmp_path / "grown", Alone(), extend=True)
    summary = go(tmp_path / "grown", encoder := Alone(), extend=True)
    assert encoder.encoded == []
    assert summary.digest == go(dataset(tmp_path / "whole", NEW), Alone()).digest


def test_new_items_without_content_are_missing(tmp_path: Path) -> None:
    go(dataset(tmp_path, OLD), Alone())
    summary = go(dataset(tmp_path, {**OLD, "y": "", "z": ""}), Alone(), extend=True)
    assert (summary.counts.ok, summary.counts.missing) == (2, 3)
    reordered = dict(reversed({**OLD, "y": "", "z": ""}.items()))
    again = go(dataset(tmp_path, reordered), encoder := Alone(), extend=True)
    assert encoder.encoded == []
    with FeatureSet(again.path) as features:
        assert features.ids.tolist() == list(reordered)


def test_an_extension_of_a_catalogue_that_changed_again_begins_anew(tmp_path: Path) -> None:
    go(dataset(tmp_path, OLD), Alone())

    def killed(n: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(dataset(tmp_path, NEW), Alone(on_encode=killed), extend=True)
    progress = Recorder()
    newest = {**NEW, "zz": "last"}
    summary = go(dataset(tmp_path, newest), encoder := Alone(), extend=True, progress=progress)
    assert any("begun anew" in warning for warning in progress.warnings)
    assert sorted(encoder.encoded) == ["ex", "last", "why"]
    assert summary.counts.total == len(newest)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ({**NEW, "b": "another"}, "cells of title have changed"),
        ({item: text for item, text in NEW.items() if item != "c"}, "1 item of the set, 'c' first"),
    ],
)
def test_changed_cells_and_lost_items_are_refused(
    tmp_path: Path, items: dict[str, str], message: str
) -> None:
    summary = go(dataset(tmp_path, OLD), Alone())
    before = summary.path.read_bytes()
    with pytest.raises(UsageError, match=message):
        go(dataset(tmp_path, items), Alone(), extend=True)
    assert summary.path.read_bytes() == before
    assert [path.name for path in summary.path.parent.iterdir() if path.suffix == ".h5"] == [
        "fake.h5"
    ]


def test_another_making_is_refused(tmp_path: Path) -> None:
    go(dataset(tmp_path, OLD), Alone())
    dataset(tmp_path, NEW)
    with pytest.raises(ProvenanceMismatch, match=r"provenance.batch_size: 4, expected 5.*extended"):
        go(tmp_path, Alone(), batch_size=5, extend=True)


def test_a_fitted_encoder_is_refused(tmp_path: Path) -> None:
    go(dataset(tmp_path, OLD), Alone())
    encoder = Alone()
    encoder.needs_fit = True
    with pytest.raises(UsageError, match="fitted to all items"):
        go(dataset(tmp_path, NEW), encoder, extend=True)


def test_without_the_option_the_error_names_it(tmp_path: Path) -> None:
    go(dataset(tmp_path, OLD), Alone())
    with pytest.raises(ProvenanceMismatch, match="--extend computes these alone"):
        go(dataset(tmp_path, NEW), Alone())


def test_extend_and_restart_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="extend keeps what restart discards"):
        RunConfig(extend=True, restart=True)


# ------------------------------------------------------------------------------------------------
# merging


def shards(tmp_path: Path, *parts: dict[str, str], batch_size: int = 4) -> list[Path]:
    return [
        go(dataset(tmp_path / f"part{k}", part), Alone(), batch_size=batch_size).path
        for k, part in enumerate(parts)
    ]


def test_shards_make_the_set_of_one_run(tmp_path: Path) -> None:
    items = list(NEW.items())
    paths = shards(tmp_path, dict(items[:3]), dict(items[3:5]), dict(items[4:]))
    done = merge(paths, tmp_path / "store", name="fake")
    whole = go(dataset(tmp_path / "whole", NEW), Alone())
    assert (done.digest, done.repeated, done.already) == (whole.digest, 1, False)
    assert (done.ok, done.missing, done.corrupt) == (4, 1, 2)
    assert merge(paths, tmp_path / "store", name="fake").already
    with FeatureSet(done.path) as features:
        assert features.verify() == []
        merged = features.provenance["input"]["merged"]
    assert [one["rows"] for one in merged] == [3, 2, 3]


def test_a_vector_wins_over_the_lack_of_one(tmp_path: Path) -> None:
    paths = shards(tmp_path, {"a": "", "b": "two"}, {"a": "here", "c": "three"})
    done = merge(paths, tmp_path / "store", name="fake")
    with FeatureSet(done.path) as features:
        assert features.ids.tolist() == ["a", "b", "c"]
        assert features.status.tolist() == [Status.OK] * 3


def test_different_vectors_of_an_item_are_refused(tmp_path: Path) -> None:
    paths = shards(tmp_path, {"a": "one", "b": "two"}, {"b": "other", "c": "three"})
    with pytest.raises(DataError, match="item 'b' has different vectors"):
        merge(paths, tmp_path / "store", name="fake")
    assert not (tmp_path / "store").exists()


def test_sets_of_another_making_are_refused(tmp_path: Path) -> None:
    first = shards(tmp_path / "4", {"a": "one"})
    second = shards(tmp_path / "5", {"b": "two"}, batch_size=5)
    with pytest.raises(DataError, match=r"made otherwise .*batch_size: 5, expected 4"):
        merge([*first, *second], tmp_path / "store", name="fake")
    with pytest.raises(UsageError, match="two sets or more"):
        merge(first, tmp_path / "store", name="fake")
    with pytest.raises(UsageError, match="one of the sets that are merged"):
        merge([*first, *first], first[0].parents[1], name="fake")
