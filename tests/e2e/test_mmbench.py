"""The installed `mmbench` as a user runs it: exit codes, output, kill and resume, imports."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from tests.mmbench.conftest import write_dataset
from tests.processes import Forked, ended

from mmbench import cli
from mmbench.trainer import Trainer

SCRIPT = Path(sys.executable).with_name("mmbench")
ENVIRONMENT = {**os.environ, "COLUMNS": "100", "OMP_NUM_THREADS": "1"}

HEAVY = ("torch", "numpy", "pandas", "h5py", "scipy", "pydantic", "yaml", "rich", "numba")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mmbench")
    write_dataset(folder / "toy")
    return folder


FAST = ("--set", "epochs=6", "--every", "2", "--set", "embedding_dim=8", "--data", "toy", "-q")


def test_train_prints_tables_that_fit_100_columns(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = "most-popular,item-knn,content-knn,bpr-mf,vbpr"
    arguments = ["train", "--model", models, "--seed", "1,2", *FAST]
    done = ended("mmbench", *arguments, cwd=place, environment={"COLUMNS": "100"})
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert "…" not in done.stdout
    for text in ("test @10", "test @20", "most-popular", "content-knn", "Recall", "nDCG", "EFD"):
        assert text in done.stdout
    for text in ("Gini", "APLT", "iCov", "±"):
        assert text in done.stdout
    assert done.stderr == ""
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "100")
    assert shown(capsys, *arguments) == done.stdout


def test_all_metrics_and_slices_fit_100_columns(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    run = json.loads(shown(capsys, "train", "--model", "vbpr", *FAST, "--json"))["run"]
    text = shown(capsys, "evaluate", run, "--metrics", "all", "--slices", "--protocol", "paper")
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    for expected in (
        "UserCoverageAtN",
        "nDCGRendle2020",
        "popularity head",
        "activity q1",
        "visual without",
        "left out",
    ):
        assert expected in text
    printed = shown(capsys, "train", "--model", "vbpr", *FAST, "--slices")
    assert "test @20 by slice" in printed
    document = json.loads(shown(capsys, "evaluate", run, "--slices", "--json"))
    stored = json.loads((place / run / "metrics.json").read_text())
    assert document["protocol"]["name"] == "strict"
    assert document["slices"] == stored["slices"]


def test_json_is_one_document(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    document = json.loads(shown(capsys, "train", "--model", "vbpr", *FAST, "--json"))
    assert set(document) >= {"run", "valid", "test"}
    assert document["test"]["Recall@20"] > 0
    evaluated = json.loads(
        shown(
            capsys, "evaluate", document["run"], "--json", "--metrics", "all", "--cutoffs", "5,20"
        )
    )
    assert evaluated["test"]["Recall@20"] == document["test"]["Recall@20"]
    assert "LAUC@5" in evaluated["valid"]
    several = json.loads(shown(capsys, "train", "--model", "vbpr,bpr-mf", *FAST, "--json"))
    assert [run["model"] for run in several["runs"]] == ["vbpr", "bpr-mf"]


def test_progress_goes_to_stderr_in_plain_lines(place: Path) -> None:
    arguments = ["train", "--model", "vbpr", "--seed", "77", *FAST[:-1], "--json"]
    done = ended("mmbench", *arguments, cwd=place)
    json.loads(done.stdout)
    for line in (
        "data: toy, split random:0.2,0.2,42: 40 users, 30 items; 240 train, 80 valid, 80 test",
        "visual: toy, 6 numbers per item: 29 of 30 items have a vector, 1 missing, 0 corrupt; 0 "
        "vectors of other items unused",
    ):
        assert line in done.stderr
    assert "\r" not in done.stderr
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "--model", "vbrp", *FAST], 2, "Did you mean 'vbpr'"),
        (["train", *FAST], 2, "--model is missing"),
        (["train", "--model", "vbpr", *FAST, "--set", "lrr=1"], 2, "Did you mean 'lr'"),
        (["train", "--model", "vbpr", *FAST, "--set", "lr"], 2, "expected NAME=VALUE"),
        (["train", "--model", "vbpr", *FAST, "--set", "lr=fast"], 2, "lr = 'fast'"),
        (["train", "--model", "vbpr", *FAST, "--grid", "lr=0.1,-1"], 2, "lr = -1"),
        (["train", "--model", "vbpr", *FAST, "--metrics", "recal"], 2, "Did you mean 'Recall'"),
        (["train", "--model", "vbpr", *FAST, "--cutoffs", "0"], 2, "at least 1"),
        (["train", "--model", "vbpr", *FAST, "--cutoffs", "ten"], 2, "whole numbers"),
        (
            ["train", "--model", "vbpr", *FAST, "--select-by", "Recall"],
            2,
            "must look like Recall@20",
        ),
        (["train", "--model", "vbpr", *FAST, "--features", "visual=toi"], 1, "toy"),
        (["train", "--model", "vbpr", *FAST, "--features", "visual"], 2, "expected MODALITY=NAME"),
        (["train", "--model", "vbpr", *FAST, "--split", "mine"], 2, "no split 'mine'"),
        (["train", "--model", "vbpr", "--data", "nowhere"], 1, "no such dataset folder"),
        (["train", "--model", "vbpr", *FAST, "--device", "cuda:99"], 2, "not on this machine"),
        (["trian"], 2, "Did you mean 'train'"),
        (["train", "--modle", "vbpr"], 2, "No such option"),
        (["train", "--model", "vbpr", *FAST, "--grid", "lr"], 2, "--grid lr: expected NAME=V1,V2"),
        (
            ["train", "--model", "vbpr", *FAST, "--grid", "lr=1", "--grid", "lr=2"],
            2,
            "lr is given twice",
        ),
        (["train", "--resume", "toy", "--set", "lr=1"], 2, "--set: has no meaning beside --resume"),
        (
            ["train", "--model", "vbpr", *FAST, "--columns", "usr=u"],
            2,
            "unknown role in --columns 'usr'",
        ),
        (
            ["tune", "--model", "vbpr", *FAST, "--search", "lr=1..2", "--search", "lr=2..3"],
            2,
            "lr is given twice",
        ),
        (["evaluate", "toy", "--split", "given"], 2, "--split and --columns go with --recs"),
        (["evaluate"], 2, "either a run folder or --recs"),
        (["evaluate", "--recs", "x.tsv"], 2, "--recs needs --data"),
        (["evaluate", "--recs", "x.tsv", "--data", "toy"], 1, "no such file"),
        (["data", "stats", "nowhere"], 1, "no such dataset folder"),
        (["data", "split", "toy", "--test", "1"], 2, "not in the range"),
        (
            ["evaluate", "--recs", "x.tsv", "--data", "toy", "--threshold", "nan"],
            2,
            "threshold = nan",
        ),
        (["data", "split", "toy", "--name", "../x"], 2, "a plain folder name"),
        (["models", "vbrp"], 2, "Did you mean 'vbpr'"),
        (["metrics", "recal"], 2, "Did you mean 'Recall'"),
    ],
)
def test_mistakes_give_one_clear_message(
    place: Path,
    arguments: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(place)
    assert cli.run(arguments) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert len(captured.err.splitlines()) <= 5


def test_every_help_has_examples(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    for command in (
        [],
        ["train"],
        ["evaluate"],
        ["data"],
        ["data", "stats"],
        ["data", "split"],
        ["models"],
        ["metrics"],
    ):
        assert cli.run([*command, "--help"]) == 0
        text = capsys.readouterr().out
        assert "Examples:" in text, command
        assert max(map(len, text.splitlines())) <= 100


def shown(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert cli.run(list(arguments)) == code
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("train", "--resume", ".", "--model", "bm3"), "--model"),
        (("train", "--resume", ".", "--set", "lr=1"), "--set"),
        (("recommend", ".", "--embeddings", "x", "-k", "3"), "-k"),
        (("recommend", ".", "--embeddings", "x", "--users", "u1"), "--users"),
        (("data", "split", ".", "--method", "eighths", "--test", "0.3"), "--test"),
        (("data", "split", ".", "--method", "leave-k-out", "--valid", "0.3"), "--valid"),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(
    arguments: tuple[str, ...],
    option: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text("data: x\nmodel: vbpr\nsettings: {}\n")
    assert cli.run(list(arguments)) == 2
    assert f"error: {option}: " in capsys.readouterr().err


def test_the_registries_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert "vbpr" in shown(capsys, "models")
    assert "He, McAuley" in shown(capsys, "models", "vbpr")
    assert "reg_weight" in shown(capsys, "models", "vbpr")
    assert "Recall" in shown(capsys, "metrics")
    assert "DCG / ideal DCG" in shown(capsys, "metrics", "ndcg")
    assert "  lr " not in shown(capsys, "models", "item-knn")
    assert "neighbours" in json.loads(shown(capsys, "models", "item-knn", "--json"))["settings"]
    assert "no settings" in shown(capsys, "models", "most-popular")
    assert "pop an item's training users" in " ".join(shown(capsys, "metrics").split())
    assert max(map(len, (shown(capsys, "models") + shown(capsys, "metrics")).splitlines())) <= 100
    listed = json.loads(shown(capsys, "models", "--json"))
    assert listed["schema"] == "mmbench.models 1.0"
    assert {entry["name"] for entry in listed["models"]} >= {"vbpr", "bpr-mf"}
    (metric,) = json.loads(shown(capsys, "metrics", "ndcg", "--json"))["metrics"]
    assert metric["name"] == "nDCG"


def test_data_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(write_dataset(tmp_path / "other"))
    counts = json.loads(shown(capsys, "data", "stats", folder, "--json"))
    assert counts["users"] == 40
    assert "train" in shown(capsys, "data", "split", folder, "--name", "mine")
    again = json.loads(shown(capsys, "data", "stats", folder, "--json"))
    assert (again["split"], again["digest"]) == ("mine", counts["digest"])
    assert "there already" in shown(capsys, "data", "split", folder, "--name", "mine")
    shown(capsys, "data", "split", folder, "--name", "mine", "--seed", "7", code=1)


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_at_any_instant_and_resumed_gives_the_same_metrics(
    place: Path, kills: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    slow = ["--set", "epochs=45", "--every", "3", "--set", "embedding_dim=8"]
    slow += ["--set", "batch_size=8", "--data", "toy", "-q", "--json"]
    whole = json.loads(shown(capsys, "train", "--model", "vbpr", *slow, "--out", "whole"))
    rng = random.Random(0)
    for attempt in range(kills):
        out = f"killed{kills}-{attempt}"
        arguments = ["train", "--model", "vbpr", *slow, "--out", out]
        environment = {"MMBENCH_SAVE_EVERY_S": "0"}
        process = Forked("mmbench", *arguments, cwd=place, environment=environment)
        deadline = time.monotonic() + 120
        while (
            not list((place / out).glob("*/state.safetensors"))
            and process.poll() is None
            and time.monotonic() < deadline
        ):
            time.sleep(0.01)
        time.sleep(rng.random() * 0.5)
        process.send_signal(signal.SIGKILL)
        process.wait()
        run = next((place / out).iterdir())
        assert not (run / "metrics.json").exists(), (
            "the run was over before it was killed: make it longer"
        )
        ended("mmbench", "train", "--resume", run, "-q", cwd=place)
        assert (run / "metrics.json").read_bytes() == (
            place / whole["run"] / "metrics.json"
        ).read_bytes()


def test_interrupting_says_that_the_same_command_goes_on(place: Path) -> None:
    arguments = [
        "train",
        "--model",
        "vbpr",
        "--data",
        "toy",
        "-q",
        "--set",
        "epochs=90000",
        "--every",
        "90000",
    ]
    arguments += [
        "--out",
        "interrupted",
    ]  # a folder of its own: a run of another test would say that this one has begun
    process = Forked("mmbench", *arguments, cwd=place)
    while not list((place / "interrupted").glob("*/history.jsonl")) and process.poll() is None:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert (
        process.stderr.strip() == "interrupted; the same command goes on from the last saved epoch"
    )


def test_help_is_quick_and_imports_nothing_heavy(place: Path) -> None:
    code = (
        "import sys, mmbench.cli\n"
        "code = mmbench.cli.run(['--help'])\n"
        f"sys.exit(','.join(name for name in {HEAVY!r} if name in sys.modules) or code)"
    )
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=place, capture_output=True, text=True, check=False
    )
    after = os.times()
    assert done.returncode == 0, done.stderr
    cpu_s = (
        after.children_user + after.children_system - before.children_user - before.children_system
    )
    assert cpu_s < 0.4


def test_the_installed_command_trains_without_extras_and_never_imports_mmx(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = (
        "mmx",
        "torchvision",
        "torchaudio",
        "transformers",
        "open_clip",
        "sentence_transformers",
        "sklearn",
        "skimage",
        "PIL",
    )
    arguments = ["train", "--model", "vbpr", *FAST]
    code = (
        "import runpy, sys\n"
        f"for name in {blocked!r}: sys.modules[name] = None\n"
        f"sys.argv = {[str(SCRIPT), *arguments, '--out', 'blocked']!r}\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=place,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "100")
    printed = shown(capsys, *arguments, "--out", "here")
    assert "\ncost\n" in printed  # which differs
    assert done.stdout.partition("\ncost\n")[0] == printed.partition("\ncost\n")[0]


@pytest.mark.skipif(sys.platform == "win32", reason="limits of this kind exist on POSIX systems")
def test_a_full_disk_ends_with_one_message_and_the_run_goes_on(place: Path) -> None:
    import resource

    command = ["train", "--model", "vbpr", *FAST, "--out", "full"]
    narrow = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (6_000, 6_000))
    full = ended("mmbench", *command, cwd=place, prepare=narrow, expect=1)
    assert full.stderr.startswith("error: ")
    assert not list((place / "full").rglob("metrics.json"))
    document = json.loads(ended("mmbench", *command, "--json", cwd=place).stdout)
    whole = json.loads(ended("mmbench", *command[:-2], "--json", cwd=place).stdout)
    assert document["test"] == whole["test"]


def test_an_impossible_folder_is_an_error_with_the_path(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "file").write_text("")
    monkeypatch.chdir(place)
    assert cli.run(["train", "--model", "bpr-mf", *FAST, "--out", "file/runs"]) == 1
    assert "file" in capsys.readouterr().err


def test_too_little_memory_is_an_error_without_traceback(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    assert (
        cli.run(
            [
                "train",
                "--model",
                "most-popular",
                "--data",
                "toy",
                "-q",
                "--cutoffs",
                "20,99999999999999",
            ]
        )
        == 1
    )
    assert "error: out of memory" in capsys.readouterr().err


def test_seeds_and_models_given_twice_are_one(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    models = ["--model", "random,random", "--seed", "3,3"]
    assert cli.run(["train", *models, "--data", "toy", "-q", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["seed"] == 3


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.79 "
            "GiB of which 1.20 GiB is "
            "free. Including non-PyTorch memory, this process has 5 GiB memory in use. See "
            "documentation for more"
        ),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: "
            "you tried …"
        ),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_a_gpu_without_memory_is_one_line(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.chdir(place)
    monkeypatch.setattr(Trainer, "run", fail)
    assert cli.run(["train", "--model", "bpr-mf", *FAST, "--out", "none"]) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(f"error: out of memory: {str(error)[:20]}")
    assert "smaller batch_size" in told
    assert "non-PyTorch" not in told
