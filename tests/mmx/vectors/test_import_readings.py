"""Where two readings of a foreign file fit, none is guessed: ids, columns and datasets."""

from __future__ import annotations

import pickle
from decimal import Decimal
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from mmstore import FeatureSet
from mmx.cli import cli
from mmx.errors import DataError, UsageError
from mmx.vectors.ids import ids_from_file
from mmx.vectors.importers import import_features
from mmx.vectors.sources import Source

IDS = ["B2", "B0", "B1"]
MATRIX = np.arange(6, dtype=np.float32).reshape(3, 2) + 1


def lines(path: Path, *text: str) -> Path:
    path.write_text("".join(line + "\n" for line in text), encoding="utf-8")
    return path


def take_in(format_name: str, path: Path, **how: Any) -> FeatureSet:
    out = path.parent / "features"
    source = Source(path, **how)
    done = import_features(format_name, source, out, modality="visual", name="x", restart=True)
    return FeatureSet(done.path)


def rows_of(features: FeatureSet, ids: list[str]) -> list[list[float]]:
    matrix, present = features.matrix(ids)
    assert present.all()
    return matrix.tolist()


# ------------------------------------------------------------------------------------------------
# lists of ids


@pytest.mark.parametrize("name", ["ids.txt", "ids.csv", "ids.tsv"])
def test_one_id_too_many_is_no_header(tmp_path: Path, name: str) -> None:
    path = lines(tmp_path / name, "B9", *IDS)
    with pytest.raises(DataError, match=r"4 ids for 3 rows.*if 'B9' is a header.*--id-column B9"):
        ids_from_file(path, 3)
    assert ids_from_file(path, 3, id_column="B9").ids == IDS


def test_a_known_name_is_a_header_even_where_the_count_would_fit_without(tmp_path: Path) -> None:
    path = lines(tmp_path / "ids.txt", "item_id", *IDS[:2])
    with pytest.raises(DataError, match="2 ids for 3 rows below the header"):
        ids_from_file(path, 3)
    assert ids_from_file(lines(path, "item_id", *IDS), 3).ids == IDS


def test_an_empty_line_between_ids_is_a_row_without_an_id(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="4 ids for 3 rows"):
        ids_from_file(lines(tmp_path / "ids.txt", "B2", "", "B0", "B1"), 3)
    with pytest.raises(DataError, match="row 1 has an empty id"):
        ids_from_file(lines(tmp_path / "ids.csv", "B2", "", "B0"), 3)


@pytest.mark.parametrize("suffix", ["tsv", "parquet", "jsonl"])
def test_two_columns_of_row_numbers_are_asked_about(tmp_path: Path, suffix: str) -> None:
    frame = pd.DataFrame({"a": [2, 0, 1], "b": [0, 2, 1]})
    path = tmp_path / f"ids.{suffix}"
    if suffix == "tsv":
        frame.to_csv(path, sep="\t", index=False, header=False)
    elif suffix == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=True)
    with pytest.raises(UsageError, match=r"which column holds the ids.*Both hold 0 … 2"):
        ids_from_file(path, 3)
    if suffix != "tsv":
        assert ids_from_file(path, 3, id_column="a", row_column="b").ids == ["2", "1", "0"]
        assert ids_from_file(path, 3, id_column="b", row_column="a").ids == ["2", "1", "0"]


def test_a_row_without_a_row_number_is_no_header(tmp_path: Path) -> None:
    path = lines(tmp_path / "map.tsv", "B9\tnone", "B2\t1", "B0\t0")
    with pytest.raises(DataError, match="'none' is not a row number"):
        ids_from_file(path, 2)


def test_a_mapping_of_files_loses_no_item_to_a_header(tmp_path: Path) -> None:
    folder = tmp_path / "vectors"
    folder.mkdir()
    np.save(folder / "0.npy", MATRIX[0])
    path = lines(tmp_path / "map.tsv", "B9\t9.npy", "B2\t0.npy")
    with pytest.raises(DataError, match=r"'B9 9.npy' \(expected an id and the name of a file"):
        take_in("npy-folder", folder, ids=path)
    path = lines(tmp_path / "map.tsv", "asin\tfile", "B2\t0.npy", "")
    assert take_in("npy-folder", folder, ids=path).ids.tolist() == ["B2"]


def test_an_export_whose_first_id_is_a_name_of_a_column_comes_back(tmp_path: Path) -> None:
    from mmx.vectors.exporters import export_features

    np.save(tmp_path / "m.npy", MATRIX)
    ids = lines(tmp_path / "ids.txt", "item_id", "id", "asin", "item")
    with take_in("npy", tmp_path / "m.npy", ids=ids) as features:
        done = export_features(features, "npy", tmp_path / "out.npy")
        back = take_in("npy", done.path, ids=done.ids)
    assert rows_of(back, ["id", "asin", "item"]) == MATRIX.tolist()


# ------------------------------------------------------------------------------------------------
# columns of Parquet


def numbered(**more: Any) -> pd.DataFrame:
    columns = {f"f{i}": MATRIX[:, i] for i in range(2)}
    return pd.DataFrame({"asin": IDS, **columns, **more})


def test_an_index_that_pandas_wrote_is_no_feature(tmp_path: Path) -> None:
    frame = numbered()
    frame.index = pd.Index([7, 3, 5])
    frame.to_parquet(tmp_path / "v.parquet")
    assert rows_of(take_in("parquet", tmp_path / "v.parquet"), IDS) == MATRIX.tolist()
    frame.rename_axis("rank").to_parquet(tmp_path / "v.parquet")
    assert rows_of(take_in("parquet", tmp_path / "v.parquet"), IDS) == MATRIX.tolist()
    parts = tmp_path / "parts"
    parts.mkdir()
    for number in range(2):
        part = frame[2 * number : 2 * number + 2].rename_axis("rank")
        part.to_parquet(parts / f"{number}.parquet")
    assert rows_of(take_in("parquet", parts), IDS) == MATRIX.tolist()


@pytest.mark.parametrize(
    "stranger", ["index", "level_0", "Unnamed: 0", "price", "rating", "sales_2023", "timestamp"]
)
def test_numeric_columns_of_several_kinds_are_asked_about(tmp_path: Path, stranger: str) -> None:
    path = tmp_path / "v.parquet"
    numbered(**{stranger: [1, 2, 3]}).to_parquet(path)
    told = rf"2 kinds: f0, f1; {stranger}; choose with --column.*--column 'f\*'"
    with pytest.raises(UsageError, match=told):
        take_in("parquet", path)
    assert rows_of(take_in("parquet", path, columns=("f*",)), IDS) == MATRIX.tolist()
    assert take_in("parquet", path, columns=(stranger,)).dim == 1
    with pytest.raises(UsageError, match=r"no single column 'g\*'"):
        take_in("parquet", path, columns=("g*",))


def test_the_columns_taken_are_said(tmp_path: Path) -> None:
    wide = pd.DataFrame(np.ones((3, 12), np.float32)).rename(columns=str)
    path = tmp_path / "v.parquet"
    wide.assign(asin=pd.Categorical(IDS)).to_parquet(path)
    arguments = ["store", "import", "--format", "parquet", "--modality", "visual", "--name", "x"]
    result = CliRunner().invoke(cli, [*arguments, str(path), "--out", str(tmp_path / "f")])
    assert result.exit_code == 0, result.output
    assert "ids: column 'asin' of v.parquet; vectors: 0 … 11 (12 columns)" in result.output


# ------------------------------------------------------------------------------------------------
# HDF5 of other programs, and files that are something else


def hdf5(path: Path, **content: Any) -> Path:
    with h5py.File(path, "w") as file:
        for key, value in content.items():
            file[key.replace("__", "/")] = value
    return path


@pytest.mark.parametrize("ids", [IDS, [s.encode() for s in IDS], np.array(IDS, "S4")])
def test_a_matrix_and_its_ids_in_hdf5(tmp_path: Path, ids: Any) -> None:
    path = hdf5(tmp_path / "v.h5", data__emb=MATRIX, data__names=ids, other=np.ones((2, 9)))
    with pytest.raises(UsageError, match=r"--dataset KEY.*data/emb \(3, 2\) of float32"):
        take_in("hdf5", path, ids=Path("data/names"))
    features = take_in("hdf5", path, ids=Path("data/names"), dataset="data/emb")
    assert rows_of(features, IDS) == MATRIX.tolist()
    importer = features.provenance["importer"]
    assert (importer["dataset"], importer["ids"]) == ("data/emb", "data/names")


def test_an_only_matrix_needs_no_name_and_ids_may_be_a_file_or_numbers(tmp_path: Path) -> None:
    path = hdf5(tmp_path / "v.h5", emb=MATRIX, rows=np.array([12, 10, 11]))
    assert rows_of(take_in("hdf5", path, ids=Path("rows")), ["12", "10", "11"]) == MATRIX.tolist()
    ids = lines(tmp_path / "ids.txt", *IDS)
    assert rows_of(take_in("hdf5", path, ids=ids), IDS) == MATRIX.tolist()
    with pytest.raises(UsageError, match=r"neither a key of v.h5 nor a file \(keys: emb, rows\)"):
        take_in("hdf5", path, ids=Path("nothing"))
    with pytest.raises(UsageError, match="nothing says which row is which item"):
        take_in("hdf5", path)


@pytest.mark.parametrize("key", ["/", "visual"])
def test_a_group_of_one_vector_per_item(tmp_path: Path, key: str) -> None:
    prefix = "" if key == "/" else "visual__"
    content = {prefix + name: row[None] for name, row in zip(IDS, MATRIX, strict=True)}
    path = hdf5(tmp_path / "v.h5", **content)
    assert rows_of(take_in("hdf5", path, dataset=key), IDS) == MATRIX.tolist()
    with h5py.File(path, "a") as file:
        file[f"{key.strip('/')}/wrong"] = np.ones(3, np.float32)
    with pytest.raises(DataError, match=r"wrong: float32 of shape \(3,\) \(expected one vector"):
        take_in("hdf5", path, dataset=key)


def test_hdf5_that_is_refused(tmp_path: Path) -> None:
    path = hdf5(tmp_path / "v.h5", emb=MATRIX, ids=IDS[:2], text=IDS)
    with pytest.raises(DataError, match=r"v.h5:ids: 2 ids for 3 rows"):
        take_in("hdf5", path, dataset="emb", ids=Path("ids"))
    with pytest.raises(UsageError, match=r"no key 'embs' \(got emb, ids, text\)"):
        take_in("hdf5", path, dataset="embs", ids=Path("ids"))
    with pytest.raises(DataError, match="holds object"):
        take_in("hdf5", path, dataset="text", ids=Path("ids"))
    with pytest.raises(DataError, match=r"v.h5:emb: float32 of shape \(3, 2\)"):
        take_in("hdf5", path, dataset="emb", ids=Path("emb"))
    with h5py.File(path, "a") as file:
        file["link"] = h5py.ExternalLink("other.h5", "/emb")
        file.create_dataset("huge", (1 << 30, 4), "f4", chunks=(1 << 10, 4), compression="gzip")
    with pytest.raises(DataError, match="a link to elsewhere"):
        take_in("hdf5", path, dataset="link", ids=Path("ids"))
    with pytest.raises(DataError, match="by its shape, and fewer in the file"):
        take_in("hdf5", path, dataset="huge", ids=Path("ids"))
    with pytest.raises(DataError, match="not an HDF5 file"):
        take_in("hdf5", lines(tmp_path / "x.h5", "no"), ids=Path("ids"))


def test_a_file_of_another_kind_is_called_by_its_name(tmp_path: Path) -> None:
    import torch

    ids = lines(tmp_path / "ids.txt", *IDS)
    torch.save(torch.tensor(MATRIX), tmp_path / "v.pt")
    with pytest.raises(DataError, match=r"v.pt: no .npy file but one of torch.save; .*numpy.save"):
        take_in("npy", tmp_path / "v.pt", ids=ids)
    (tmp_path / "v.pkl").write_bytes(pickle.dumps(MATRIX))
    with pytest.raises(DataError, match=r"v.pkl: no .npy file but a pickle; .*numpy.save"):
        take_in("npy", tmp_path / "v.pkl", ids=ids)
    with pytest.raises(DataError, match="HDF5; read it with --format hdf5"):
        take_in("npy", hdf5(tmp_path / "v.h5", emb=MATRIX), ids=ids)
    np.savez(tmp_path / "v.npz", a=MATRIX, b=MATRIX)
    with pytest.raises(DataError, match=r"an archive of arrays \(a, b\)"):
        take_in("npy", tmp_path / "v.npz", ids=ids)


@pytest.mark.parametrize(
    "content",
    [
        b'"B2"\n"B0"\n"B1"\n',
        b'"item_id"\r\n"B2"\r\n"B0"\r\n"B1"\r\n',
        b'"B0"\t1\n"B1"\t2\n"B2"\t0\n',
        "B2\nB0\nB1\n".encode("utf-16"),
    ],
    ids=["quoted", "quoted, with a header", "quoted, with rows", "UTF-16"],
)
def test_lists_of_ids_as_other_programs_write_them(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ids.txt").write_bytes(content)
    assert ids_from_file(tmp_path / "ids.txt", 3).ids == IDS


def test_marks_around_some_ids_are_part_of_them(tmp_path: Path) -> None:
    assert ids_from_file(lines(tmp_path / "ids.txt", "a", '"b"'), 2).ids == ["a", '"b"']


def test_an_array_of_ids_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.array(IDS))
    with pytest.raises(DataError, match=r"ids.npy: an array of NumPy; write its ids to a text"):
        ids_from_file(tmp_path / "ids.npy", 3)


def test_no_column_of_a_numbered_group_is_left_out(tmp_path: Path) -> None:
    frame = pd.DataFrame({"item_id": IDS, "f0": MATRIX[:, 0], "f1": ["1", "2", "3"]})
    frame.to_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"'f1' holds .*string, and f0 hold numbers"):
        take_in("parquet", tmp_path / "x.parquet")
    frame["f1"] = [Decimal("1.5"), Decimal(2), Decimal(3)]
    frame.to_parquet(tmp_path / "x.parquet")
    found = rows_of(take_in("parquet", tmp_path / "x.parquet"), IDS)
    assert found == [[1, 1.5], [3, 2], [5, 3]]
