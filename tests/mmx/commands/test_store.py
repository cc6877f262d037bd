"""`mmx store …`: what is printed where, and with which exit code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner, Result

from mmstore import FeatureSet, FeatureSetWriter, Pairs
from mmx.cli import cli
from mmx.commands.exchange import EXPORT_FORMATS, IMPORT_FORMATS
from mmx.commands.store import store

MATRIX = np.arange(12, dtype=np.float32).reshape(4, 3) + 0.5


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["store", *map(str, arguments)])


def make(
    root: Path,
    name: str = "a",
    *,
    scale: float = 1.0,
    dim: int = 3,
    ids: str = "abcd",
    **provenance: Any,
) -> Path:
    path = root / "visual" / f"{name}.h5"
    with FeatureSetWriter(
        path,
        modality="visual",
        dim=dim,
        ids=list(ids),
        provenance={"extractor": name, **provenance},
        restart=True,
    ) as writer:
        writer.write([0, 1], scale * MATRIX[:2, :dim])
        writer.mark_missing([2])
        writer.mark_corrupt([3], ["truncated JPEG"])
        writer.finish()
    return path


def alter(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["features"][0, 0] = 99.0


# ------------------------------------------------------------------------------------------------
# ls


@pytest.mark.parametrize("argument", ["data/features", "data"])
def test_ls_prints_a_table_of_sets(
    tmp_path: Path, argument: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    path = make(tmp_path / "data" / "features")
    result = run("ls", tmp_path / argument)
    assert result.exit_code == 0
    header, _, line = result.stdout.splitlines()
    assert header.split() == [
        "set",
        "rows",
        "ok",
        "missing",
        "corrupt",
        "dim",
        "dtype",
        "size",
        "digest",
    ]
    cells = re.split(r"\s{2,}", line.strip())
    assert cells[:7] == ["visual/a", "4", "2", "1", "1", "3", "float32"]
    assert cells[8] == FeatureSet(path).content_digest[:12]
    assert result.stderr == ""


def test_ls_json(tmp_path: Path) -> None:
    make(tmp_path)
    make(tmp_path, "b")
    result = run("ls", tmp_path, "--json")
    document = json.loads(result.stdout)
    assert [entry["name"] for entry in document["sets"]] == ["a", "b"]
    assert document["sets"][0]["corrupt"] == 1
    assert document["unfinished"] == [] and document["problems"] == []


def test_ls_lists_the_sound_sets_and_names_the_damaged_and_unfinished(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "visual" / "bad.h5").write_text("no HDF5")
    with FeatureSetWriter(
        tmp_path / "audio" / "half.h5", modality="audio", dim=1, ids=["a"], provenance={}
    ):
        pass
    result = run("ls", tmp_path)
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 3  # heading, rule, one set
    assert "bad.h5: is not an HDF5 file" in result.stderr
    assert "unfinished: audio/half" in result.stderr


def test_ls_of_nothing(tmp_path: Path) -> None:
    result = run("ls", tmp_path)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "no feature sets; mmx extract or mmx store import make some" in result.stderr
    result = run("ls", tmp_path / "absent")
    assert result.exit_code == 1
    assert "absent: no such store" in result.stderr


# ------------------------------------------------------------------------------------------------
# info


def test_info_of_a_path_or_of_a_name_in_a_store(tmp_path: Path) -> None:
    path = make(tmp_path / "features", layer="avgpool", preprocessing={"size": 224})
    by_path, by_name = run("info", path), run("info", "visual/a", "--store", tmp_path)
    assert by_path.exit_code == by_name.exit_code == 0
    assert by_path.stdout == by_name.stdout
    assert "  preprocessing.size: 224\n" in by_path.stdout
    assert "errors (1 of 1; --json shows all)\n  row 3, d: truncated JPEG\n" in by_path.stdout
    assert re.search(r"^missing +1$", by_path.stdout, re.MULTILINE)


def test_info_json(tmp_path: Path) -> None:
    document = json.loads(run("info", make(tmp_path), "--json").stdout)
    assert document["errors"] == [{"row": 3, "id": "d", "message": "truncated JPEG"}]
    assert document["provenance"]["extractor"] == "a"
    assert document["content_digest"] == FeatureSet(tmp_path / "visual" / "a.h5").content_digest


def test_info_of_an_unfinished_set(tmp_path: Path) -> None:
    with FeatureSetWriter(
        tmp_path / "audio" / "half.h5", modality="audio", dim=1, ids=["a"], provenance={}
    ):
        pass
    result = run("info", tmp_path / "audio" / "half.h5.partial")
    assert result.exit_code == 0
    assert re.search(r"^pending +1$", result.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("visual/b", "no visual set 'b' (there are: a)"),
        ("audio/a", "no feature set of modality 'audio'"),
        ("absent.h5", "no such file"),
    ],
)
def test_info_of_what_is_not_there(tmp_path: Path, target: str, message: str) -> None:
    make(tmp_path)
    result = run("info", target, "--store", tmp_path)
    assert (result.exit_code, result.stdout) == (1, "")
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_newer_minor_version_is_read_and_said(tmp_path: Path) -> None:
    path = make(tmp_path)
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = "1.9"
    result = run("info", path)
    assert result.exit_code == 0
    assert result.stderr.count("warning: ") == 1 and "format version 1.9 is newer" in result.stderr


# ------------------------------------------------------------------------------------------------
# verify


def test_verify_of_sound_sets(tmp_path: Path) -> None:
    first, second = make(tmp_path), make(tmp_path, "b")
    result = run("verify", tmp_path)
    assert result.exit_code == 0
    assert result.stdout == f"{first}: ok\n{second}: ok\n"
    assert result.stderr == "2 sets, 0 with problems\n"


def test_verify_names_every_problem_and_exits_with_1(tmp_path: Path) -> None:
    make(tmp_path)
    altered = make(tmp_path, "b")
    alter(altered)
    (tmp_path / "c.h5").write_text("no HDF5")
    result = run("verify", tmp_path, tmp_path / "c.h5")
    assert result.exit_code == 1
    sound, digest, foreign = result.stdout.splitlines()
    assert sound.endswith("a.h5: ok")
    assert digest.startswith(f"{altered}: content_digest differs")
    assert foreign.startswith(f"{tmp_path / 'c.h5'}: is not an HDF5 file")
    document = json.loads(run("verify", tmp_path, "--json").stdout)
    assert document["ok"] is False
    assert {Path(name).name: len(found) for name, found in document["sets"].items()} == {
        "a.h5": 0,
        "b.h5": 1,
    }


def test_verify_of_nothing_is_an_error(tmp_path: Path) -> None:
    assert run("verify", tmp_path).exit_code == 1
    result = run("verify", tmp_path / "absent.h5")
    assert result.exit_code == 1 and "no such file or store" in result.stderr


# ------------------------------------------------------------------------------------------------
# diff


def test_diff_of_a_set_with_itself(tmp_path: Path) -> None:
    path = make(tmp_path)
    result = run("diff", path, path, "--exit-code", "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert (
        document["equal"] is True
        and document["max_abs_difference"] == 0.0
        and document["provenance"] == {}
    )
    assert document["vector_in_both"] == 2 and document["in_both"] == 4
    assert "provenance           the same" in run("diff", path, path).stdout


def test_diff_joins_by_id(tmp_path: Path) -> None:
    a = make(tmp_path, "a", layer="x")
    b = make(tmp_path, "b", scale=3.0, ids="baxd", layer="y")
    document = json.loads(run("diff", "visual/a", "visual/b", "--store", tmp_path, "--json").stdout)
    assert (document["only_in_a"], document["only_in_a_examples"]) == (1, ["c"])
    assert (document["only_in_b"], document["only_in_b_examples"]) == (1, ["x"])
    assert document["same_order"] is False and document["equal"] is False
    # Row a of the first is MATRIX[0]; of the second 3 * MATRIX[1], and the other way round for b.
    expected = np.abs(np.concatenate([MATRIX[0] - 3 * MATRIX[1], MATRIX[1] - 3 * MATRIX[0]])).max()
    assert document["max_abs_difference"] == pytest.approx(float(expected), abs=0)
    assert document["provenance"] == {"extractor": ["a", "b"], "layer": ["x", "y"]}
    result = run("diff", a, b, "--exit-code")
    assert result.exit_code == 1
    assert "  layer: x | y\n" in result.stdout
    assert run("diff", a, b).exit_code == 0


def test_diff_of_different_dimensions_has_no_difference_to_tell(tmp_path: Path) -> None:
    document = json.loads(
        run("diff", make(tmp_path, "a"), make(tmp_path, "b", dim=2), "--json").stdout
    )
    assert document["dim"] == [3, 2] and document["max_abs_difference"] is None


def test_diff_of_interactions_and_of_unlike_sets(tmp_path: Path) -> None:
    path = tmp_path / "textual" / "reviews.h5"
    ids = Pairs(["u", "v"], ["i", "i"])
    with FeatureSetWriter(path, modality="textual", dim=1, ids=ids, provenance={}) as writer:
        writer.write([0, 1], [[1.0], [2.0]])
        writer.finish()
    document = json.loads(run("diff", path, path, "--json").stdout)
    assert document["in_both"] == 2 and document["equal"] is True
    result = run("diff", make(tmp_path), path)
    assert result.exit_code == 1 and "a set of interactions (expected items" in result.stderr


# ------------------------------------------------------------------------------------------------
# import, export


@pytest.fixture
def matrix(tmp_path: Path) -> tuple[Path, Path]:
    np.save(tmp_path / "m.npy", MATRIX.astype(np.float16))
    (tmp_path / "ids.txt").write_text("007\n7\nB00日本\na/b\n", encoding="utf-8")
    return tmp_path / "m.npy", tmp_path / "ids.txt"


def take_in(
    file: Path, *more: object, out: Path, name: str = "mine", format_name: str = "npy"
) -> Result:
    return run(
        "import",
        "--format",
        format_name,
        "--modality",
        "visual",
        "--name",
        name,
        file,
        "--out",
        out,
        *more,
    )


def test_import_then_export_gives_the_numbers_back(
    tmp_path: Path, matrix: tuple[Path, Path]
) -> None:
    file, ids = matrix
    result = take_in(file, "--ids", ids, out=tmp_path / "f")
    assert result.exit_code == 0
    assert result.stdout == f"{tmp_path / 'f' / 'visual' / 'mine.h5'}\n"
    assert result.stderr == "4 rows (0 missing) of 3 numbers imported\n"
    assert take_in(file, "--ids", ids, out=tmp_path / "f").stderr.endswith(
        "was imported before, nothing to do\n"
    )
    result = run(
        "export",
        "visual/mine",
        "--store",
        tmp_path / "f",
        "--format",
        "npy",
        "--out",
        tmp_path / "out.npy",
    )
    assert result.exit_code == 0
    assert result.stdout == f"{tmp_path / 'out.npy'}\n"
    assert result.stderr == f"4 rows; ids: {tmp_path / 'out.ids.txt'}\n"
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), MATRIX)
    assert (tmp_path / "out.ids.txt").read_bytes() == ids.read_bytes()


def test_import_of_row_numbers_says_so_aloud(tmp_path: Path, matrix: tuple[Path, Path]) -> None:
    (tmp_path / "train.tsv").write_text("user_id\titem_id\nu\t0\nu\t2\nu\t1\nu\t3\n")
    result = run(
        "import",
        "--format",
        "npy",
        "--modality",
        "visual",
        "--name",
        "x",
        matrix[0],
        "--data",
        tmp_path,
    )
    assert result.exit_code == 0
    assert result.stdout == f"{tmp_path / 'features' / 'visual' / 'x.h5'}\n"
    assert "row i is item i: the item ids in train.tsv" in result.stderr


def test_import_json_and_quiet(tmp_path: Path, matrix: tuple[Path, Path]) -> None:
    array = MATRIX.copy()
    array[1] = np.nan
    np.save(matrix[0], array)
    result = take_in(
        matrix[0], "--ids", matrix[1], "--nan-is-missing", "--json", "-q", out=tmp_path / "f"
    )
    assert result.stderr == ""
    document = json.loads(result.stdout)
    assert (document["rows"], document["missing"], document["dim"]) == (4, 1, 3)
    assert document["content_digest"] == FeatureSet(Path(document["path"])).content_digest
    assert document["already_complete"] is False


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--format", "npy", "--name", "x", "{npy}"], 2, "Missing option '--modality'"),
        (
            ["--format", "npz", "--name", "x", "--modality", "visual", "{npy}"],
            2,
            "'npz' is not one of",
        ),
        (
            ["--format", "npy", "--name", "x", "--modality", "visual", "{npy}"],
            2,
            "--out: which store?",
        ),
        (
            ["--format", "npy", "--name", "a/b", "--modality", "visual", "{npy}", "--out", "{out}"],
            2,
            "--name: got 'a/b'",
        ),
        (
            ["--format", "npy", "--name", "x", "--modality", "Visual", "{npy}", "--out", "{out}"],
            2,
            "--modality: got",
        ),
        (
            ["--format", "npy", "--name", "x", "--modality", "visual", "{npy}", "--out", "{out}"],
            2,
            "give --ids FILE",
        ),
        (
            [
                "--format",
                "npy",
                "--name",
                "x",
                "--modality",
                "visual",
                "{npy}",
                "--out",
                "{out}",
                "--ids",
                "{npy}",
            ],
            1,
            "an array of NumPy; write its ids",
        ),
        (
            ["--format", "npy", "--name", "x", "--modality", "visual", "{out}", "--out", "{out}"],
            1,
            "cannot be read",
        ),
        (
            [
                "--format",
                "parquet",
                "--name",
                "x",
                "--modality",
                "visual",
                "{npy}",
                "--out",
                "{out}",
            ],
            1,
            "not a Parquet",
        ),
        (["--format", "npy", "--tensors", "x"], 2, "Did you mean|No such option"),
    ],
)
def test_imports_that_cannot_be_done(
    tmp_path: Path, matrix: tuple[Path, Path], arguments: list[str], code: int, message: str
) -> None:
    result = run("import", *(part.format(npy=matrix[0], out=tmp_path / "f") for part in arguments))
    assert result.exit_code == code
    assert re.search(re.escape(message).replace(r"\|", "|"), result.stderr)
    assert result.stdout == "" and "Traceback" not in result.stderr
    assert not (tmp_path / "f").exists()


def test_another_set_of_the_same_name_is_only_replaced_when_said(
    tmp_path: Path, matrix: tuple[Path, Path]
) -> None:
    file, ids = matrix
    take_in(file, "--ids", ids, out=tmp_path / "f")
    result = take_in(file, "--ids", ids, "--dtype", "float16", out=tmp_path / "f")
    assert result.exit_code == 1
    assert "dtype" in result.stderr and "--restart" in result.stderr
    assert (
        take_in(file, "--ids", ids, "--dtype", "float16", "--restart", out=tmp_path / "f").exit_code
        == 0
    )
    assert FeatureSet(tmp_path / "f" / "visual" / "mine.h5").dtype == np.float16


@pytest.mark.parametrize("format_name", EXPORT_FORMATS)
def test_every_format_can_be_exported(tmp_path: Path, format_name: str) -> None:
    path = make(tmp_path)
    result = run("export", path, "--format", format_name, "--out", tmp_path / "out" / "x")
    assert result.exit_code == 0
    assert "2 rows" in result.stderr and "2 rows without a vector left out" in result.stderr
    assert (tmp_path / "out" / "x").exists()
    assert (
        run("export", path, "--format", format_name, "--out", tmp_path / "out" / "x").exit_code == 1
    )


def test_unsafe_ids_go_into_a_mapping(tmp_path: Path, matrix: tuple[Path, Path]) -> None:
    take_in(matrix[0], "--ids", matrix[1], out=tmp_path / "f")
    export = (
        "export",
        tmp_path / "f" / "visual" / "mine.h5",
        "--format",
        "npy-folder",
        "--out",
        tmp_path / "folder",
    )
    result = run(*export)
    assert result.exit_code == 1 and "id 'a/b' is no safe file name" in result.stderr
    assert run(*export, "--mapping", tmp_path / "map.tsv").exit_code == 0
    result = take_in(
        tmp_path / "folder",
        "--ids",
        tmp_path / "map.tsv",
        out=tmp_path / "g",
        format_name="npy-folder",
    )
    assert result.exit_code == 0
    document = json.loads(
        run("diff", tmp_path / "f/visual/mine.h5", tmp_path / "g/visual/mine.h5", "--json").stdout
    )
    assert document["equal"] is True


@pytest.mark.real_data
@pytest.mark.parametrize(("modality", "name"), [("visual", "image"), ("audio", "audio")])
def test_real_vectors_survive_the_round_trip(
    tmp_path: Path, real_data: Path, modality: str, name: str
) -> None:
    file = real_data / "tiktok" / f"{name}_feat.npy"
    arguments = ["--format", "npy", "--modality", modality, "--name", f"tiktok-{name}", file]
    result = run("import", *arguments, "--data", real_data / "tiktok", "--out", tmp_path)
    assert result.exit_code == 0 and "exactly 0 … 6709" in result.stderr
    assert run("verify", tmp_path).exit_code == 0
    assert run(
        "export",
        f"{modality}/tiktok-{name}",
        "--store",
        tmp_path,
        "--format",
        "npy",
        "--out",
        tmp_path / "x.npy",
    )
    original = np.load(file)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), original.astype(np.float32))
    assert (tmp_path / "x.ids.txt").read_text().split() == [
        str(row) for row in range(len(original))
    ]


# ------------------------------------------------------------------------------------------------
# the group


@pytest.mark.parametrize("command", sorted(store.commands))
def test_every_command_has_help_with_examples(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "EXAMPLES" in result.stdout and f"mmx store {command}" in result.stdout


def test_an_unknown_command_is_answered_with_the_closest() -> None:
    result = run("exprt")
    assert result.exit_code == 2 and "Did you mean 'export'?" in result.stderr
    assert "Choose one of: " in run("zzz").stderr


def test_the_formats_offered_are_those_that_exist() -> None:
    from mmx.vectors import exporters, importers

    assert set(IMPORT_FORMATS) == set(importers.FORMATS)
    assert set(EXPORT_FORMATS) == set(exporters.FORMATS)


def test_ls_imports_nothing_heavy(tmp_path: Path) -> None:
    make(tmp_path)
    code = (
        "import sys; from mmx.commands.store import store\n"
        f"store(['ls', {str(tmp_path)!r}], standalone_mode=False)\n"
        "print([m for m in ('torch', 'pandas', 'pyarrow', 'rich', 'PIL', 'pydantic', 'scipy') if m "
        "in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_sets_of_parts_are_merged(tmp_path: Path) -> None:
    parts = [make(tmp_path / ids, "a", ids=ids) for ids in ("abcd", "wxyz")]
    merged = run("merge", *parts, "--name", "all", "--out", tmp_path / "f", "--json")
    assert merged.exit_code == 0, merged.stderr
    told = json.loads(merged.stdout)
    assert told["items"] == {"ok": 4, "missing": 2, "corrupt": 2}
    assert told["repeated"] == 0
    with FeatureSet(tmp_path / "f" / "visual" / "all.h5") as features:
        assert features.ids.tolist() == list("abcdwxyz")
        assert features.errors() == [(3, "truncated JPEG"), (7, "truncated JPEG")]
    again = run("merge", *parts, "--name", "all", "--out", tmp_path / "f")
    assert "was merged before" in again.stderr
    other = make(tmp_path / "other", "b", ids="klmn")
    refused = run("merge", parts[0], other, "--name", "x", "--out", tmp_path / "f")
    assert refused.exit_code == 1
    assert "was made otherwise" in refused.stderr
