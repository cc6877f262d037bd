from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from mmbase.extraction_cost import read_cost, write_cost
from mmbase.progress import Silent
from mmstore import FeatureSet, FeatureSetWriter, ProvenanceMismatch, Status
from mmx.config import RunConfig, SetConfig
from mmx.encoders import Encoder, EncoderSpec
from mmx.errors import ContentError, DataError, EncoderError, Interrupted
from mmx.extraction.extract import extract
from mmx.extraction.summary import Summary


class FakeEncoder(Encoder):
    """Numbers that follow from the text and, in the third place, from who shares its batch."""

    modalities = frozenset({"textual", "visual"})

    def __init__(self, modality: str = "textual", dim: int = 3) -> None:
        self.spec = EncoderSpec(
            name="fake", modality=modality, backend="test", model_id="fake", dim=dim, layer="only",
            pooling="none", preprocessing={}, weights="none", weights_sha256=None, licence=None,
            precision="fp32",
        )  # fmt: skip
        self.fitted: list[str | Path] = []
        self.loaded: list[str] = []
        self.batches: list[int] = []
        self.on_encode: Callable[[int], None] = lambda n: None

    @classmethod
    def accepts(cls, model: str, modality: str) -> bool:
        return model == "fake"

    def load(self, content: str | Path) -> str:
        text = content.read_text(encoding="utf-8") if isinstance(content, Path) else content
        self.loaded.append(text)
        if text.startswith("bad"):
            raise ContentError(f"cannot decode {text}")
        return text

    def encode(self, batch: Sequence[str]) -> NDArray[np.float32]:
        self.batches.append(len(batch))
        self.on_encode(len(self.batches))
        shared = sum(sum(map(ord, text)) for text in batch)
        rows = [[len(text), sum(map(ord, text)), shared] for text in batch]
        features = np.array(rows, dtype=np.float32)
        features[[text.startswith("nan") for text in batch]] = np.nan
        return features

    def fit(self, contents: Iterable[str | Path]) -> None:
        self.fitted = list(contents)

    def sort_key(self, loaded: str) -> int:
        return len(loaded)

    def truncated(self, loaded: str) -> bool:
        return len(loaded) > 10


class Recorder(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.advanced = 0

    def note(self, message: str) -> None:
        self.notes.append(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    def advance(self, steps: int = 1, message: str = "") -> None:
        self.advanced += steps


def dataset(root: Path, texts: dict[str, str]) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    rows = "".join(f"{item}\t{text}\n" for item, text in texts.items())
    (root / "items.tsv").write_text("item_id\ttitle\n" + rows, encoding="utf-8")
    return root


def go(
    root: Path, encoder: FakeEncoder | None = None, *, batch_size: int = 4, **run: Any
) -> Summary:
    config = SetConfig(modality="textual", model="fake", batch_size=batch_size)
    built = encoder if encoder is not None else FakeEncoder()
    progress = run.pop("progress", None)
    run.setdefault("device", "cpu")
    return extract(
        RunConfig(data=root, **run), config, progress=progress, build=lambda model, **options: built
    )


MANY = {f"i{number:04d}": "x" * (number * 7 % 23 + 1) for number in range(1000)}


def test_every_item_gets_its_row_and_its_status(tmp_path: Path) -> None:
    root = dataset(
        tmp_path, {"a": "one", "b": "", "c": "bad", "d": "a long title", "e": "nan vector"}
    )
    progress = Recorder()
    summary = go(root, progress=progress)
    assert (summary.counts.ok, summary.counts.missing, summary.counts.corrupt) == (2, 1, 2)
    assert summary.exit_code == 3
    assert summary.errors[0] == ("c", "cannot decode bad")
    assert summary.errors[1][0] == "e"
    assert summary.stages.n_truncated == 1
    assert progress.advanced == 5
    assert summary.path == root / "features" / "textual" / "fake.h5"
    with FeatureSet(summary.path) as features:
        assert features.ids.tolist() == ["a", "b", "c", "d", "e"]
        assert features.status.tolist() == [
            Status.OK,
            Status.MISSING,
            Status.CORRUPT,
            Status.OK,
            Status.CORRUPT,
        ]
        matrix, present = features.matrix(["d", "b", "a"])
        assert matrix[[0, 2], 0].tolist() == [12, 3]
        assert present.tolist() == [True, False, True]
        assert features.verify() == []


def test_the_provenance_names_the_input_and_nothing_of_the_machine(tmp_path: Path) -> None:
    summary = go(dataset(tmp_path / "somewhere", {"a": "one"}))
    with FeatureSet(summary.path) as features:
        provenance = features.provenance
    assert provenance["input"]["table"] == "items.tsv"
    assert provenance["input"]["columns"] == ["title"]
    assert provenance["extractor"] == "fake"
    assert provenance["batch_size"] == 4
    assert str(tmp_path) not in json.dumps(provenance)
    assert os.uname().nodename not in json.dumps(provenance)


def test_what_a_set_cost_lies_beside_it_and_not_in_it(tmp_path: Path) -> None:
    first = go(dataset(tmp_path / "one", {"a": "one", "b": "", "c": "bad"}))
    second = go(dataset(tmp_path / "two", {"a": "one", "b": "", "c": "bad"}))
    cost = read_cost(first.path, first.digest)
    assert cost is not None and cost.of_set == pytest.approx(cost.seconds) and cost.seconds > 0
    assert (cost.items, cost.measured, cost.sets, cost.device) == (3, 3, 1, "cpu")
    write_cost(second.path, replace(cost, seconds=99.0))
    assert go(tmp_path / "two").already_complete  # which leaves the cost as it is
    found = read_cost(second.path, second.digest)
    assert found is not None and found.seconds == 99


def test_a_complete_set_is_left_as_it_is(tmp_path: Path) -> None:
    root = dataset(tmp_path, {"a": "one", "b": "bad"})
    first = go(root)
    encoder = FakeEncoder()
    second = go(root, encoder)
    assert second.already_complete
    assert (second.digest, second.counts, second.errors) == (
        first.digest,
        first.counts,
        first.errors,
    )
    assert encoder.loaded == []


def test_other_texts_are_another_plan(tmp_path: Path) -> None:
    root = dataset(tmp_path, {"a": "one"})
    first = go(root)
    dataset(root, {"a": "two"})
    with pytest.raises(ProvenanceMismatch, match="--restart"):
        go(root)
    assert go(root, restart=True).digest != first.digest


@pytest.mark.parametrize("workers", [1, 3])
def test_the_digest_does_not_depend_on_the_number_of_workers(tmp_path: Path, workers: int) -> None:
    root = dataset(tmp_path, MANY)
    assert (
        go(root, workers=2, out=tmp_path / "a").digest
        == go(root, workers=workers, out=tmp_path / "b").digest
    )


@pytest.mark.parametrize("stop_at", [1, 2, 63, 64, 65, 130, 249])
def test_an_interrupted_run_goes_on_and_ends_with_the_same_bits(
    tmp_path: Path, stop_at: int
) -> None:
    root = dataset(tmp_path, MANY | {"bad": "bad", "none": ""})
    whole = go(root, out=tmp_path / "whole")

    def interrupt(batch: int) -> None:
        if batch == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    encoder = FakeEncoder()
    encoder.on_encode = interrupt
    with pytest.raises(Interrupted, match="goes on"):
        go(root, encoder, out=tmp_path / "parts")
    assert not (tmp_path / "parts/textual/fake.h5").exists()
    done = sum(encoder.batches)
    again = FakeEncoder()
    rest = go(root, again, out=tmp_path / "parts")
    assert rest.digest == whole.digest
    assert sum(again.batches) == 1000 - done  # nothing is computed twice


def test_a_crash_of_the_encoder_keeps_what_was_done(tmp_path: Path) -> None:
    root = dataset(tmp_path, MANY)

    def crash(batch: int) -> None:
        if batch == 100:
            raise RuntimeError("the device is gone")

    encoder = FakeEncoder()
    encoder.on_encode = crash
    with pytest.raises(RuntimeError, match="the device is gone"):
        go(root, encoder)
    again = FakeEncoder()
    go(root, again)
    assert len(again.batches) == 250 - 99


@pytest.mark.parametrize("method", ["load", "encode"])
def test_an_item_on_which_the_encoder_fails_is_corrupt_and_the_rest_goes_on(
    tmp_path: Path, method: str
) -> None:
    class Fragile(FakeEncoder):
        def load(self, content: str | Path) -> str:
            return self._checked("load", super().load(content))

        def encode(self, batch: Sequence[str]) -> NDArray[np.float32]:
            return super().encode([self._checked("encode", text) for text in batch])

        def _checked(self, where: str, text: str) -> str:
            if where == method and "~" in text:
                raise IndexError("index out of range in self")
            return text

    # Texts of one length share a batch, which has nothing but bad ones.
    bad = {f"b{k}": "~" * 9 for k in range(5)} | {"b": "~"}
    root = dataset(tmp_path, {**{f"i{k}": "x" * (k % 5 + 1) for k in range(50)}, **bad})
    summary = go(root, Fragile())
    assert (summary.counts.ok, summary.counts.corrupt, summary.exit_code) == (50, 6, 3)
    told = dict(summary.errors)
    assert told["b0"] == "the encoder fails on it (IndexError: index out of range in self)"
    with pytest.raises(DataError, match=r"item 'b0?': the encoder fails on it"):
        go(root, Fragile(), out=tmp_path / "other", on_error="fail")
    with pytest.raises(DataError, match="none of the 6 items could be encoded; the first: b"):
        go(dataset(tmp_path / "all bad", bad), Fragile())


@pytest.mark.parametrize("error", [EncoderError("no library"), ImportError("no library")])
def test_an_error_that_is_no_items_ends_the_run(tmp_path: Path, error: Exception) -> None:
    class Broken(FakeEncoder):
        def load(self, content: str | Path) -> str:
            raise error

    with pytest.raises(type(error), match="no library"):
        go(dataset(tmp_path, {"a": "one", "b": "two"}), Broken())


def test_a_device_that_failed_is_not_the_fault_of_the_items(tmp_path: Path) -> None:
    def lost(batch: int) -> None:
        if batch >= 5:
            raise RuntimeError("CUDA error: device-side assert triggered")

    encoder = FakeEncoder()
    encoder.on_encode = lost
    with pytest.raises(EncoderError, match="the device failed .* --device cpu finds"):
        go(dataset(tmp_path, MANY), encoder)
    assert go(tmp_path).counts.corrupt == 0


def test_a_wrong_shape_is_the_encoders_fault(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"shape \(1, 3\) \(expected \(1, 4\)\)"):
        go(dataset(tmp_path, {"a": "one"}), FakeEncoder(dim=4))


def test_too_many_failures_stop_the_run_and_a_higher_limit_goes_on(tmp_path: Path) -> None:
    root = dataset(tmp_path, {str(number): "bad" if number % 2 else "fine" for number in range(40)})
    with pytest.raises(DataError, match="more than --max-failures 1%"):
        go(root)
    assert go(root, max_failures="50%").counts.corrupt == 20
    with pytest.raises(DataError, match="more than --max-failures 0"):
        go(root, max_failures="0", out=tmp_path / "strict")


def test_the_limit_of_failures() -> None:
    def limit(text: str, n: int) -> int:
        return RunConfig(max_failures=text).failure_limit(n)

    assert [
        limit("1%", 50),
        limit("1%", 10_000),
        limit("1%", 10_001),
        limit("0%", 50),
        limit("7", 50),
    ] == [
        10,
        100,
        101,
        0,
        7,
    ]


def test_on_error_fail_stops_at_the_first_and_does_not_record_it(tmp_path: Path) -> None:
    root = dataset(tmp_path, {"a": "one", "b": "bad"})
    with pytest.raises(DataError, match="item 'b': cannot decode bad"):
        go(root, on_error="fail")
    dataset(root, {"a": "one", "b": "bad"})
    assert go(root).counts.corrupt == 1


def test_repaired_items_are_retried_on_request(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in "ab":
        (tmp_path / "images" / f"{name}.jpg").write_text(
            "bad" if name == "b" else "one", encoding="utf-8"
        )
    config = SetConfig(modality="visual", model="fake")

    def run(**options: Any) -> Summary:
        run_config = RunConfig(data=tmp_path, device="cpu", **options)
        return extract(run_config, config, build=lambda model, **_: FakeEncoder("visual"))

    assert run().counts.corrupt == 1
    (tmp_path / "images" / "b.jpg").write_text("two", encoding="utf-8")
    assert run().counts.corrupt == 1
    repaired = run(retry_failed=True)
    assert (repaired.counts.ok, repaired.exit_code, repaired.stages.n_items) == (2, 0, 1)


def test_other_paths_are_another_plan(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("one", "two"):
        (tmp_path / "images" / f"{name}.jpg").write_text(name, encoding="utf-8")

    def run(cell: str, several: Literal["mean"] | None, separator: str | None) -> Summary:
        (tmp_path / "items.tsv").write_text(f"item_id\timage\na\t{cell}\n", encoding="utf-8")
        config = SetConfig(
            modality="visual", model="fake", several=several, path_separator=separator
        )
        return extract(
            RunConfig(data=tmp_path, device="cpu"),
            config,
            build=lambda model, **_: FakeEncoder("visual"),
        )

    for several in (None, "mean"):
        separator = "|" if several else None
        assert not run("one.jpg", several, separator).already_complete
        assert run("one.jpg", several, separator).already_complete
        with pytest.raises(ProvenanceMismatch, match="input.digest"):
            run("two.jpg", several, separator)
    with pytest.raises(ProvenanceMismatch, match="path_separator"):
        run("one.jpg", "mean", ";")


def test_what_is_flushed_is_forced_onto_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    flushed: list[int] = []
    finish = FeatureSetWriter.finish

    def flush_first(writer: FeatureSetWriter) -> str:
        calls.clear()
        writer.flush()
        flushed.append(len(calls))
        return finish(writer)

    monkeypatch.setattr(os, "fsync", calls.append)
    monkeypatch.setattr(FeatureSetWriter, "finish", flush_first)
    go(dataset(tmp_path, {"a": "one"}))
    assert flushed == [2]  # vectors, then their status


def test_items_that_have_a_file_by_now_are_retried_on_request(tmp_path: Path) -> None:
    dataset(tmp_path, {"a": "", "b": ""})
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_text("one", encoding="utf-8")

    def run(**options: Any) -> Summary:
        config = SetConfig(modality="visual", model="fake")
        return extract(
            RunConfig(data=tmp_path, device="cpu", **options),
            config,
            build=lambda model, **_: FakeEncoder("visual"),
        )

    assert run().counts.missing == 1
    (tmp_path / "images" / "b.jpg").write_text("two", encoding="utf-8")
    assert run().counts.missing == 1
    found = run(retry_failed=True)
    assert (found.counts.ok, found.counts.missing, found.stages.n_items) == (2, 0, 1)


@pytest.mark.parametrize(("n_absent", "exit_code"), [(0, 0), (3, 0), (4, 3)])
def test_files_that_are_named_and_not_there_are_counted(
    tmp_path: Path, n_absent: int, exit_code: int
) -> None:
    cells = ["there.jpg", *(f"no{k}.jpg" for k in range(n_absent)), ""]
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "there.jpg").write_text("one", encoding="utf-8")
    rows = "".join(f"i{k}\t{cell}\n" for k, cell in enumerate(cells))
    (tmp_path / "items.tsv").write_text("item_id\timage\n" + rows, encoding="utf-8")
    progress = Recorder()
    for _ in range(2):  # a complete set says it, too
        summary = extract(
            RunConfig(data=tmp_path, device="cpu"),
            SetConfig(modality="visual", model="fake"),
            progress=progress,
            build=lambda model, **_: FakeEncoder("visual"),
        )
        assert (summary.counts.missing, summary.absent.count) == (n_absent + 1, n_absent)
        assert summary.exit_code == exit_code
        document = summary.as_json()["absent_files"]
        assert document["count"] == n_absent
        if n_absent:
            assert document["example"].startswith("i1: no0.jpg; paths start from")
            assert "name files that are not there, such as i1: no0.jpg" in summary.as_text()
    assert len(progress.warnings) == 2 * bool(n_absent)


def test_a_set_of_nothing_but_absent_files_says_so(tmp_path: Path) -> None:
    (tmp_path / "items.tsv").write_text("item_id\timage\na\tx/1.jpg\nb\t\n", encoding="utf-8")
    with pytest.raises(DataError, match="1 item names a file that is not there, such as a: x/1"):
        extract(
            RunConfig(data=tmp_path, device="cpu"),
            SetConfig(modality="visual", model="fake"),
            build=lambda model, **_: FakeEncoder("visual"),
        )


def test_a_complete_set_of_files_that_changed_is_said_to_be_old(tmp_path: Path) -> None:
    root = dataset(tmp_path, {"a": "", "b": ""})
    (root / "images").mkdir()
    (root / "images" / "a.jpg").write_text("one", encoding="utf-8")
    config = SetConfig(modality="visual", model="fake")
    progress = Recorder()

    def run() -> Summary:
        return extract(
            RunConfig(data=root, device="cpu"),
            config,
            progress=progress,
            build=lambda model, **_: FakeEncoder("visual"),
        )

    run()
    assert run().already_complete
    assert progress.warnings == []
    (root / "images" / "b.jpg").write_text("two", encoding="utf-8")
    os.utime(root / "images" / "a.jpg", (2**32, 2**32))
    run()
    assert "1 files are newer" in progress.warnings[0]
    assert "1 items that had no file" in progress.warnings[0]


@pytest.mark.parametrize("texts", [{"a": "", "b": " "}, {"a": "bad"}])
def test_nothing_usable_is_an_error_and_no_set(tmp_path: Path, texts: dict[str, str]) -> None:
    with pytest.raises(DataError, match="none of the"):
        go(dataset(tmp_path, texts))
    assert not list((tmp_path / "features").rglob("*.h5*.partial*"))
    assert not (tmp_path / "features/textual/fake.h5").exists()


def test_after_nothing_usable_the_same_command_finds_what_has_come(tmp_path: Path) -> None:
    root = dataset(tmp_path, {"a": "", "b": ""})

    def run() -> Summary:
        return extract(
            RunConfig(data=root, device="cpu"),
            SetConfig(modality="visual", model="fake"),
            progress=Recorder(),
            build=lambda model, **_: FakeEncoder("visual"),
        )

    with pytest.raises(
        DataError, match=r"looked for a column of paths, and for files such as images/a\.jpg"
    ):
        run()
    (root / "images").mkdir()
    (root / "images" / "a.jpg").write_text("one", encoding="utf-8")
    assert run().counts.ok == 1


def test_no_files_of_the_modality_at_all(tmp_path: Path) -> None:
    root = dataset(tmp_path, {"a": "one"})
    config = SetConfig(modality="audio", model="fake")
    with pytest.raises(DataError, match="audio content"):
        extract(
            RunConfig(data=root, device="cpu"),
            config,
            build=lambda model, **_: FakeEncoder("audio"),
        )


def test_a_limited_set_has_a_name_of_its_own(tmp_path: Path) -> None:
    root = dataset(tmp_path, MANY)
    assert go(root, limit=3).path.name == "fake-first3.h5"
    assert go(root).path.name == "fake.h5"


@pytest.mark.parametrize(("limit", "expected"), [({"limit": 3}, 3), ({}, None)])
def test_a_limited_set_says_so_whatever_its_name(
    tmp_path: Path, limit: dict[str, int], expected: int | None
) -> None:
    with FeatureSet(go(dataset(tmp_path, MANY), **limit).path) as features:
        assert features.provenance["input"].get("limit") == expected


def test_an_encoder_that_learns_sees_every_usable_content_once_in_order(tmp_path: Path) -> None:
    encoder = FakeEncoder()
    encoder.needs_fit = True
    go(dataset(tmp_path, {"a": "one", "b": "", "c": "bad", "d": "two"}), encoder)
    assert encoder.fitted == ["one", "bad", "two"]


def test_items_are_sorted_by_size_within_a_window_only(tmp_path: Path) -> None:
    sizes: list[list[int]] = []

    class Sizes(FakeEncoder):
        def encode(self, batch: Sequence[str]) -> NDArray[np.float32]:
            sizes.append([len(text) for text in batch])
            return super().encode(batch)

    go(dataset(tmp_path, MANY), Sizes())
    window = [size for batch in sizes[:64] for size in batch]
    assert window == sorted(window)
    assert sizes[64][0] < window[-1]


def test_outside_of_the_main_thread_signals_are_left_alone(tmp_path: Path) -> None:
    root = dataset(tmp_path, {"a": "one"})
    results: list[Summary] = []
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=lambda: results.append(go(root)))
    thread.start()
    thread.join()
    assert results[0].counts.ok == 1
    assert signal.getsignal(signal.SIGTERM) == before


def test_float16_that_overflows_is_corrupt(tmp_path: Path) -> None:
    root = dataset(tmp_path, {"a": "one", "b": "\u9f98" * 5})
    config = SetConfig(modality="textual", model="fake", store_dtype="float16", batch_size=1)
    summary = extract(
        RunConfig(data=root, device="cpu"), config, build=lambda model, **_: FakeEncoder()
    )
    assert (summary.counts.ok, summary.counts.corrupt) == (1, 1)


def test_the_summary_as_json_and_text(tmp_path: Path) -> None:
    summary = go(dataset(tmp_path, {"a": "one", "b": "bad"}))
    document = json.loads(json.dumps(summary.as_json()))
    assert document["items"] == {"total": 2, "ok": 1, "missing": 0, "corrupt": 1}
    assert document["content_digest"] == summary.digest
    assert document["this_run"]["devices"] == 1
    loading = document["this_run"]["loading"]
    assert loading.pop("settled_after_s") >= 0
    assert loading.pop("items_per_s") >= 0
    assert loading == {
        "how": "threads", "workers": document["this_run"]["workers"], "rates": [],
        "why": "the threads that load also encode", "n_replaced": 0,
    }  # fmt: skip
    assert set(document["this_run"]["seconds"]) == {
        "fit", "decode_cpu", "wait_for_decode", "wait_for_disk", "encode", "wait_for_encode",
        "decode_busy", "disk_busy", "device_busy", "write", "first", "loop", "total",
    }  # fmt: skip
    assert "b: cannot decode bad" in summary.as_text()
