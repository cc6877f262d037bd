"""Run folders that were edited or cut short: one line that names the file, never a traceback."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.mmbench.conftest import write_dataset

from mmbase.cli import run
from mmbench.cli import cli
from mmbench.errors import DataError, TrainingError
from mmbench.runs.folder import RunFolder

FILES = (
    "metrics.json",
    "run.json",
    "recipe.yaml",
    "history.jsonl",
    "trained.json",
    "per_user.parquet",
    "checkpoint.safetensors",
)
METRICS = ("--metrics", "Recall,nDCG", "--cutoffs", "5,20")
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0.5, 10**400, "x", "\ud800", "", [], {}, [[1]], {"a": {"b": None}}),
    *(float("nan"), float("inf"), -float("inf")),
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs, one of a grid, in the folder `runs` beside their data."""
    root = tmp_path_factory.mktemp("damaged")
    data = write_dataset(root / "toy", users=12, items=12)
    common = ("--data", str(data), "--out", str(root / "runs"), "--set", "epochs=2", *METRICS)
    for more in (("bpr-mf",), ("vbpr", "--grid", "vbpr.lr=0.01,0.001", "--every", "1")):
        assert run(cli, ["train", "-q", *common, "--model", *more]) == 0
    return root / "runs"


def folders(runs: Path) -> tuple[Path, Path]:
    plain, grid = sorted(runs.iterdir())
    return plain, grid


def commands(runs: Path, damaged: Path) -> dict[str, list[str]]:
    out = str(runs.parent / "out")
    return {
        "compare": ["compare", *map(str, folders(runs)), "--metric", "Recall@5"],
        "report": ["report", str(runs), "--out", out, "--metric", "Recall@5"],
        "resume": ["train", "-q", "--resume", str(damaged)],
        "evaluate": ["evaluate", str(damaged), "--slices"],
        "recommend": ["recommend", str(damaged), "--out", f"{out}.tsv", "-k", "3"],
    }


def mutated(path: Path, rng: random.Random) -> bytes:
    """The file with a key gone, another value somewhere, or other bytes."""
    good = path.read_bytes()
    if path.suffix in (".json", ".yaml", ".jsonl") and rng.random() < 0.7:
        if path.suffix == ".jsonl":
            lines = good.decode().splitlines()
            at = rng.randrange(len(lines))
            lines[at] = _edited(json.loads(lines[at]), rng, json.dumps)
            return "\n".join(lines).encode()
        text = good.decode()
        load, dump = (yaml.safe_load, yaml.dump) if path.suffix == ".yaml" else (
            json.loads, json.dumps
        )  # fmt: skip
        return _edited(load(text), rng, dump).encode()
    data, at = bytearray(good), rng.randrange(len(good))
    match rng.randrange(6):
        case 0:
            del data[at:]
        case 1:
            data[at] ^= 1 << rng.randrange(8)
        case 2:
            data[at:at] = rng.choice((b"[" * 100_000, b"\xff", b"NaN", b"9" * 5000, b"\0", b": {"))
        case 3:
            del data[at : at + rng.randint(1, 40)]
        case 4:
            return rng.choice((b"", b"[]", b"null", b"3", b"{}", b"[" * 100_000, b"\xff\xfe"))
        case _:
            data[at : at + 8] = rng.randbytes(8)
    return bytes(data)


def _edited(document: Any, rng: random.Random, dump: Callable[[Any], str]) -> str:
    places = list(_places(document))
    parent, key = rng.choice(places)
    if rng.random() < 0.4:
        del parent[key]
    else:
        parent[key] = rng.choice(VALUES)
    return dump(document)


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    keys = node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    for key in list(keys):
        yield node, key
        yield from _places(node[key])


def trial(runs: Path, seed: int, capsys: pytest.CaptureFixture[str], chosen: int | None) -> None:
    rng = random.Random(seed)
    damaged = folders(runs)[seed % 2]
    name = FILES[seed // 2 % len(FILES)]
    path = next(one for one in (damaged / name, damaged / "trials/000" / name) if one.exists())
    kept = {one: one.read_bytes() for one in runs.rglob("*") if one.is_file()}
    path.write_bytes(mutated(path, rng))
    if name in ("trained.json", "history.jsonl", "checkpoint.safetensors") and rng.random() < 0.5:
        (damaged / "metrics.json").unlink()  # killed before the end, so that they are needed
    try:
        tried = list(commands(runs, damaged).items())
        for name, arguments in tried if chosen is None else [tried[chosen]]:
            code = run(cli, arguments)
            _, told = capsys.readouterr()
            about = f"seed {seed}, {path.name}, {name}: {told}"
            assert code in (0, 1, 2), about
            assert "unexpected" not in told and "Traceback" not in told, about
            assert code == 0 or len([x for x in told.splitlines() if x.startswith("error")]) == 1, (
                about
            )
    finally:
        for one in runs.rglob("*"):
            if one.is_file() and one not in kept:
                one.unlink()
        for one, content in kept.items():
            one.write_bytes(content)
        for out in (runs.parent / "out", runs.parent / "out.tsv"):
            shutil.rmtree(out, ignore_errors=True) if out.is_dir() else out.unlink(missing_ok=True)


def test_a_command_says_what_is_damaged(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(28):
        trial(runs, seed, capsys, chosen=seed % 3 if seed % 7 else 4)


@pytest.mark.slow
def test_every_command_says_what_is_damaged(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(1000, 1200):
        trial(runs, seed, capsys, chosen=None)


EDITS = {
    "metrics.json": (
        (lambda d: d.pop("test"), r"metrics\.json: damaged: test: is absent"),
        (lambda d: d["test"].update({"Recall@5": "0.3"}), r"test\.Recall@5: got '0\.3', expected"),
        (lambda d: d.update(best_epoch=True), r"best_epoch: got True, expected a valid integer"),
        (lambda d: d["valid"].update({"Recall@5": float("nan")}), r"valid\.Recall@5: got nan"),
        (lambda d: d["test"].update(Recall=0.3), r"test\.Recall.*got 'Recall', expected"),
        (
            lambda d: d["slices"]["test"][0].update(users_evaluated=None),
            r"users_evaluated: got None, expected a valid integer",
        ),
    ),
    "run.json": (
        (lambda d: d["dataset"].pop("digest"), r"run\.json: damaged: dataset\.digest: is absent"),
        (lambda d: d["seeds"].update(run="1"), r"seeds\.run: got '1', expected a valid integer"),
        (lambda d: d["dataset"].update(name="\ud800"), r"run\.json: damaged: .*surrogates"),
        (lambda d: d.update(features=[]), r"features: got \[\], expected a valid dictionary"),
        (lambda d: d["timings"].pop("evaluation_s"), r"timings\.evaluation_s: is absent"),
        (lambda d: d["timings"].update(train_cpu_s=10**400), r"timings\.train_cpu_s: got 10+"),
        (lambda d: d.update(peak_memory_bytes=10**400), r"peak_memory_bytes: got 10+"),
        (lambda d: d["tool"].clear(), r"tool\.version: is absent"),
        (lambda d: d.update(approximate=None), r"approximate: got None"),
        (lambda d: d["dataset"].update(notes=5), r"dataset\.notes: got 5"),
        (lambda d: d["protocol"].update(n_candidates="9"), r"n_candidates: got '9'"),
        (lambda d: d["protocol"].update(masked=[]), r"protocol\.masked: got \[\]"),
        (lambda d: d["protocol"]["users_evaluated"].update(test="9"), r"test: got '9'"),
    ),
    "trained.json": (
        (lambda d: d.update(jobs=float("nan")), r"trained\.json: damaged: jobs: got nan"),
        (lambda d: d.update(threads=[]), r"trained\.json: damaged: threads: got \[\]"),
    ),
}


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [(name, *one) for name, all_ in EDITS.items() for one in all_],
    ids=range(21),
)
def test_the_line_names_file_and_key(
    name: str, edit: Callable[[Any], Any], message: str, runs: Path, tmp_path: Path
) -> None:
    folder = RunFolder(shutil.copytree(folders(runs)[0], tmp_path / "run"))
    document = json.loads((folder.path / name).read_text())
    edit(document)
    (folder.path / name).write_text(json.dumps(document))
    with pytest.raises(DataError, match=message):
        folder.read_json(name)


def test_a_checkpoint_is_what_was_saved(runs: Path, tmp_path: Path) -> None:
    folder = RunFolder(shutil.copytree(folders(runs)[0], tmp_path / "run"))
    data = bytearray(folder.checkpoint_path.read_bytes())
    data[-3] ^= 1
    folder.checkpoint_path.write_bytes(data)
    with pytest.raises(TrainingError, match=r"checkpoint\.safetensors: its content differs"):
        folder.load_checkpoint(2)


def test_lines_after_a_damaged_one_are_written_again(runs: Path, tmp_path: Path) -> None:
    folder = RunFolder(shutil.copytree(folders(runs)[0], tmp_path / "run"))
    first, second = folder.history_path.read_text().splitlines()
    for torn in (second[:20], "[1]", '{"epoch": "2"}', "[" * 100_000, "\udcff"):
        text = f"{first}\n{torn}\n".encode("utf-8", "surrogateescape")
        folder.history_path.write_bytes(text)
        with pytest.raises(DataError, match=r"history\.jsonl, line 2: damaged"):
            folder.history()
        folder.truncate_history(2)
        assert folder.history_path.read_text() == f"{first}\n"
