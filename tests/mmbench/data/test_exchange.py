"""Other frameworks' layouts: exports are read back as they were, real layouts are understood."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from mmbench.commands.exchange import export, import_
from mmbench.data.dataset import load_split
from mmbench.data.exchange import LAYOUTS, layout
from mmbench.data.exchange.bundle import WHOLE, Bundle, Vectors
from mmbench.data.exchange.folder import read_dataset, write_dataset
from mmbench.data.exchange.recbole import ABSENT
from mmbench.data.files import read_categories, read_items
from mmbench.data.tables import InteractionTable, read_interactions, sorted_ids
from mmbench.errors import DataError, UsageError
from mmstore import FeatureSet

PARTS = ("train", "valid", "test")
IDS = st.text(
    st.characters(exclude_categories=("Cc", "Cs", "Zs", "Zl", "Zp")), min_size=1, max_size=6
)


def test_the_command_names_every_layout() -> None:
    (names,) = (option.type.choices for option in import_.params if option.name == "layout_name")
    assert set(names) == {"auto", *LAYOUTS}


@st.composite
def bundles(draw: st.DrawFn) -> Bundle:
    users = draw(st.lists(IDS, min_size=2, max_size=6, unique=True))
    items = draw(st.lists(IDS, min_size=2, max_size=8, unique=True))
    rated, timed = draw(st.booleans()), draw(st.booleans())
    numbers = st.floats(0, 1e9, allow_nan=False)
    ticks = st.integers(0, 10**9)
    parts = {}
    for part in PARTS:
        n = draw(st.integers(1, 8))
        pick = st.lists(st.integers(0, 99), min_size=n, max_size=n)
        columns = [
            np.array(draw(st.lists(values, min_size=n, max_size=n))) if wanted else None
            for values, wanted in ((numbers, rated), (ticks, timed))
        ]
        parts[part] = InteractionTable(
            np.array([users[k % len(users)] for k in draw(pick)], object),
            np.array([items[k % len(items)] for k in draw(pick)], object),
            *columns,
            per_second=draw(st.sampled_from([1, 1000])),
        )
    seen = sorted_ids(np.concatenate([table.item_ids for table in parts.values()]))
    present = np.array(
        [True, *draw(st.lists(st.booleans(), min_size=len(seen) - 1, max_size=len(seen) - 1))]
    )
    matrix = (
        np.random.default_rng(draw(st.integers(0, 9)))
        .normal(size=(len(seen), 3))
        .astype(np.float32)
    )
    return Bundle(
        "toy", parts, "fixed", None, (Vectors("visual", "vgg", seen, matrix, present, {"k": 1}),)
    )


def same_tables(a: Bundle, b: Bundle) -> None:
    assert list(a.parts) == list(b.parts)
    for part, table in a.parts.items():
        other = b.parts[part]
        assert table.user_ids.tolist() == other.user_ids.tolist()
        assert table.item_ids.tolist() == other.item_ids.tolist()
        assert (table.ratings is None) == (other.ratings is None)
        np.testing.assert_array_equal(table.ratings, other.ratings)
        assert table.numbers().get("timestamp") == other.numbers().get("timestamp")


@pytest.mark.parametrize("name", ["mmrec", "elliot"])
@given(bundle=bundles())
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_what_is_exported_comes_back(
    name: str, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp(name)
    LAYOUTS[name].write(bundle, folder, "mean")
    assert layout("auto", folder)[0] == name
    back = LAYOUTS[name].read(folder)
    assert (back.name, back.split) == ("toy", "fixed")
    same_tables(bundle, back)
    (ours,), (theirs,) = bundle.vectors, back.vectors
    assert (theirs.modality, theirs.name, theirs.provenance) == ("visual", "vgg", {"k": 1})
    place = {item: row for row, item in enumerate(theirs.ids)}
    for item, vector, present in zip(ours.ids, ours.matrix, ours.present, strict=True):
        assert theirs.present[place[item]] == present
        if present:
            np.testing.assert_array_equal(theirs.matrix[place[item]], vector)


@given(bundle=bundles())
@settings(max_examples=25, deadline=None)
def test_recbole_files_come_back_with_split_and_texts(
    bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("recbole")
    every = [*bundle.ids("user_ids"), *bundle.ids("item_ids")]
    assume(not any(text.startswith('"') or text in ABSENT for text in every))  # refused, see below
    ids = bundle.ids("item_ids")
    items = pd.DataFrame({"item_id": ids, "title": [f"the {text}" for text in ids]})
    LAYOUTS["recbole"].write(Bundle("toy", bundle.parts, "fixed", items), folder, "error")
    assert layout("auto", folder)[0] == "recbole"
    back = LAYOUTS["recbole"].read(folder)
    same_tables(bundle, back)
    pd.testing.assert_frame_equal(back.items, items, check_dtype=False)


def test_a_dataset_folder_goes_out_and_in(tmp_path: Path) -> None:
    """Export to MMRec and to Elliot, then import, gives the same digests of data and features."""
    first = Bundle(
        "shop",
        {
            part: InteractionTable(
                np.array(["u1", "u2", "u1"], object),
                np.array(["007", "a/b", "日本"], object),
                np.array([5.0, 3, 4.5]),
                None,
            )
            for part in PARTS
        },
        "mine",
        pd.DataFrame({"item_id": ["007", "a/b", "日本"], "title": ["x", "", 'say "y"']}),
        (
            Vectors(
                "textual",
                "t",
                ["a/b", "日本", "007"],
                np.eye(3, 4, dtype=np.float32),
                np.array([True, False, True]),
            ),
        ),
    )
    write_dataset(first, tmp_path / "shop")
    before = load_split(tmp_path / "shop")
    runner = CliRunner()
    for name in ("mmrec", "elliot"):
        out, again = tmp_path / name, tmp_path / f"{name}-back"
        options = ["--format", name, "--features", "textual=t", "--out", str(out)]
        refused = runner.invoke(export, [str(tmp_path / "shop"), *options])
        assert isinstance(refused.exception, DataError)
        assert "日本" in str(refused.exception)
        assert not out.exists()
        done = runner.invoke(
            export, [str(tmp_path / "shop"), *options, "--missing", "mean"], catch_exceptions=False
        )
        assert done.exit_code == 0
        done = runner.invoke(import_, [str(out), "--out", str(again)], catch_exceptions=False)
        assert f"from {name}: train 3, valid 3, test 3" in done.output
        after = load_split(again)
        assert after.training.digest == before.training.digest
        assert after.test.digest == before.test.digest
        with (
            FeatureSet(again / "features/textual/t.h5") as theirs,
            FeatureSet(tmp_path / "shop/features/textual/t.h5") as ours,
        ):
            ids = ["007", "a/b", "日本"]
            for mine, other in zip(ours.matrix(ids), theirs.matrix(ids), strict=True):
                np.testing.assert_array_equal(mine, other)
        again_refused = runner.invoke(import_, [str(out), "--out", str(again)])
        assert "exists already" in str(again_refused.exception)


@pytest.mark.parametrize("name", ["items.tsv", "items.csv", "items.jsonl"])
def test_the_items_table_goes_out_whatever_it_looks_like(name: str, tmp_path: Path) -> None:
    """Other formats than TSV, an id column of another name, bytes that are not UTF-8."""
    (tmp_path / "interactions.tsv").write_text("user_id\titem_id\nu\t007\nu\tb\n")
    rows = {
        "items.tsv": b"title\tasin\nblue \xe9\t007\n\tb\n",
        "items.csv": b'title,asin\n"blue\n\xe9",007\n,b\n',
        "items.jsonl": '{"title": ["blue", "\ufffd"], "asin": "007"}\n{"title": null, "asin": '
        '"b"}\n'.encode(),
    }
    (tmp_path / name).write_bytes(rows[name])
    done = CliRunner().invoke(
        export,
        [str(tmp_path), "--format", "recbole", "--out", str(tmp_path / "out")],
        catch_exceptions=False,
    )
    assert done.exit_code == 0
    (written,) = (tmp_path / "out").glob("*.item")
    assert written.read_text() == "item_id:token\ttitle:token_seq\n007\tblue \ufffd\nb\t\n"


@given(rows=st.lists(st.tuples(IDS, st.sampled_from(['"a"', '"a" b', '"', 'a"b', "", '""']))))
@settings(max_examples=50, deadline=None)
def test_quotation_marks_of_items_survive_a_dataset_folder(
    rows: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Both tools read the table of items with its dialect guessed, the interactions literally."""
    from mmbase.catalogue.items import load_items

    rows = list({item: (item, title) for item, title in [('"q"', "t"), *rows]}.values())
    frame = pd.DataFrame(rows, columns=["item_id", "title"])
    ids = frame["item_id"].to_numpy(object)
    table = InteractionTable(np.full(len(ids), "u", object), ids, None, None)
    folder = tmp_path_factory.mktemp("quoted") / "out"
    write_dataset(Bundle("toy", {WHOLE: table}, "", frame), folder)
    back = read_dataset(folder, None, {})
    assert back.items is not None
    assert back.items.to_numpy().tolist() == frame.to_numpy().tolist()
    assert back.parts[WHOLE].item_ids.tolist() == ids.tolist() == load_items(folder).ids.to_pylist()


def test_mmrec_without_mappings_keeps_the_numbers(tmp_path: Path) -> None:
    (tmp_path / "baby.inter").write_text(
        "userID\titemID\trating\tx_label\n0\t1\t5.0\t0\n0\t0\t4\t1\n1\t1\t1\t2\n"
    )
    np.save(tmp_path / "image_feat.npy", np.ones((2, 3)))
    bundle = LAYOUTS["mmrec"].read(tmp_path)
    assert bundle.parts["valid"].item_ids.tolist() == ["0"]
    assert bundle.vectors[0].ids == ["0", "1"]
    assert "taken as ids" in bundle.notes[0]
    np.save(tmp_path / "image_feat.npy", np.ones((1, 3)))
    with pytest.raises(DataError, match="item 1 occurs"):
        LAYOUTS["mmrec"].read(tmp_path)
    (tmp_path / "i_id_mapping.csv").write_text("asin\titemID\nB0\t0\nB1\t1\n")
    with pytest.raises(DataError, match="1 row for 2 items"):
        LAYOUTS["mmrec"].read(tmp_path)
    (tmp_path / "image_feat.npy").unlink()
    assert LAYOUTS["mmrec"].read(tmp_path).parts["test"].item_ids.tolist() == ["B1"]
    (tmp_path / "i_id_mapping.csv").write_text("asin\titemID\nB0\t0\n")
    with pytest.raises(DataError, match="item 1 is not in the id mapping"):
        LAYOUTS["mmrec"].read(tmp_path)
    (tmp_path / "baby.inter").write_text("userID\titemID\tx_label\n0\t1\t3\n")
    with pytest.raises(DataError, match="x_label '3'"):
        LAYOUTS["mmrec"].read(tmp_path)


def test_mmrecs_own_files_of_stand_ins_and_numbers_that_are_none(tmp_path: Path) -> None:
    """MMRec's preprocessing writes the mean for an absent picture, and a file that names these."""
    (tmp_path / "baby.inter").write_text("userID\titemID\tx_label\n0\t1\t0\n0\t0\t1\n1\t1\t2\n")
    for file in ("image_feat.npy", "text_feat.npy"):
        np.save(tmp_path / file, np.ones((3, 2)))
    (tmp_path / "missed_img_itemIDs.csv").write_text("2\n")
    visual, textual = LAYOUTS["mmrec"].read(tmp_path).vectors
    assert visual.present.tolist() == [True, True, False]
    assert textual.present.all()
    for wrong in ("3", "-1", "x"):
        (tmp_path / "missed_img_itemIDs.csv").write_text(f"{wrong}\n")
        with pytest.raises(DataError, match=f"itemIDs.csv: item {wrong} occurs"):
            LAYOUTS["mmrec"].read(tmp_path)
    (tmp_path / "baby.inter").write_text("userID\titemID\tx_label\n0\tB01\t0\n")
    with pytest.raises(DataError, match="item B01 occurs"):
        LAYOUTS["mmrec"].read(tmp_path)


def test_elliot_finds_each_items_vector_where_it_looks_for_it(tmp_path: Path) -> None:
    """Elliot's loader takes the first length as the dimensions and enumerates training items."""
    users = np.array(["u"], object)
    parts = {
        part: InteractionTable(np.repeat(users, len(items)), np.array(items, object), None, None)
        for part, items in (("train", ["c", "e"]), ("valid", ["a", "c"]), ("test", ["d"]))
    }
    ids = ["a", "c", "d", "e"]
    matrix = np.arange(12, dtype=np.float32).reshape(4, 3)
    vectors = Vectors("visual", "v", ids, matrix, np.ones(4, bool))
    LAYOUTS["elliot"].write(Bundle("toy", parts, "s", None, (vectors,)), tmp_path, "error")
    train = pd.read_csv(
        tmp_path / "train.tsv", sep="\t", header=None, names=["user", "item", "rating"]
    )
    names = pd.read_csv(tmp_path / "items.tsv", sep="\t").set_index("number")["item_id"]
    assert sorted(train["item"]) == [0, 1]
    for number in range(4):
        vector = np.load(tmp_path / f"visual_features/{number}.npy")
        assert vector.shape == (3,)
        np.testing.assert_array_equal(vector, matrix[ids.index(names[number])])


def test_recbole_reads_what_is_written_for_it(tmp_path: Path) -> None:
    """With pandas, a leading quote would swallow lines; a second colon in a header is an error."""
    titles = ['"Weird Al', 'say "y"', '"a"', ""]
    items = pd.DataFrame({"item_id": list("abcd"), "title:en": titles})
    table = InteractionTable(
        np.array(["u"] * 4, object), np.array(list("abcd"), object), None, None
    )
    LAYOUTS["recbole"].write(Bundle("toy", {WHOLE: table}, "", items), tmp_path, "error")
    frame = pd.read_csv(
        tmp_path / "toy.item", delimiter="\t", dtype=str, encoding="utf-8", engine="python"
    )
    assert all(len(column.split(":")) == 2 for column in frame.columns)
    assert [text.split() for text in frame.iloc[:, 1].fillna("")] == [
        text.split() for text in titles
    ]
    back = LAYOUTS["recbole"].read(tmp_path)
    assert back.items is not None
    assert back.items.iloc[:, 1].tolist() == titles
    for wrong in ('"b', "NA", "null"):
        table = InteractionTable(np.array(["u"], object), np.array([wrong], object), None, None)
        with pytest.raises(DataError, match="rename it"):
            LAYOUTS["recbole"].write(Bundle("toy", {WHOLE: table}), tmp_path / "other", "error")


@pytest.mark.parametrize(
    ("name", "file"), [("mmrec", "baby.inter"), ("recbole", "baby.train.inter")]
)
def test_files_are_named_like_their_folder_which_is_where_they_are_looked_for(
    tmp_path: Path, name: str, file: str
) -> None:
    table = InteractionTable(np.array(["u"], object), np.array(["i"], object), None, None)
    write_dataset(Bundle("shop", dict.fromkeys(PARTS, table), "s"), tmp_path / "shop")
    arguments = [str(tmp_path / "shop"), "--format", name, "--out", str(tmp_path / "baby")]
    assert CliRunner().invoke(export, arguments, catch_exceptions=False).exit_code == 0
    assert (tmp_path / "baby" / file).is_file()


def test_microlens_with_times_or_with_sequences(tmp_path: Path) -> None:
    (tmp_path / "MicroLens-50k_titles.csv").write_text('item,title\n1,"cats, dogs"\n2,\n')
    (tmp_path / "MicroLens-50k_pairs.tsv").write_text("7\t2 1\n8\t1\n")
    name, module = layout("auto", tmp_path)
    assert name == "microlens"
    bundle = module.read(tmp_path)
    table = bundle.parts[WHOLE]
    assert list(zip(table.user_ids, table.item_ids, table.timestamps, strict=True)) == [
        ("7", "2", 1),
        ("7", "1", 2),
        ("8", "1", 1),
    ]
    assert bundle.items is not None
    assert bundle.items.to_numpy().tolist() == [["1", "cats, dogs"], ["2", ""]]
    (tmp_path / "MicroLens-50k_pairs.csv").write_text("user,item,timestamp\n7,2,1583378629552\n")
    assert module.read(tmp_path).parts[WHOLE].timestamps.tolist() == [1583378629552.0]
    (tmp_path / "MicroLens-50k_titles.csv").write_text("1,a\n2,b\n")
    assert module.read(tmp_path).items.to_numpy().tolist() == [["1", "a"], ["2", "b"]]


def test_duchos_tree_beside_splits_is_said_and_can_be_added(tmp_path: Path) -> None:
    leaf = tmp_path / "shop/visual_embeddings_indexed/torch/ResNet50/avgpool"
    leaf.mkdir(parents=True)
    for item in ("7", "8"):
        np.save(leaf / f"{item}.npy", np.ones((1, 3), np.float32))
    for part in ("train", "val", "test"):
        (tmp_path / f"shop/{part}.tsv").write_text("1\t7\t1\n1\t8\t1\n")
    runner, out = CliRunner(), str(tmp_path / "data")
    done = runner.invoke(import_, [str(tmp_path / "shop"), "--out", out], catch_exceptions=False)
    assert (
        f"note: it holds a tree of Ducho's, too: mmbench data import --format ducho {tmp_path}"
        in done.output
    )
    added = runner.invoke(
        import_, ["--format", "ducho", str(tmp_path / "shop"), "--out", out], catch_exceptions=False
    )
    assert "visual/resnet50-avgpool: 2 items x 3, 0 missing" in added.output


def test_duchos_tree_goes_into_the_store(tmp_path: Path) -> None:
    for row, item in enumerate(("B1", "a.v1")):
        for layer in ("avgpool", "layer4"):
            place = tmp_path / "out/visual_embeddings/torch/ResNet50" / layer
            place.mkdir(parents=True, exist_ok=True)
            np.save(place / f"{item}.npy", np.full((1, 4), row, np.float32))
    done = CliRunner().invoke(
        import_, [str(tmp_path / "out"), "--out", str(tmp_path / "data")], catch_exceptions=False
    )
    assert "visual/resnet50-avgpool: 2 items x 4" in done.output
    with FeatureSet(tmp_path / "data/features/visual/resnet50-layer4.h5") as features:
        assert features.matrix(["a.v1"])[0].tolist() == [[1, 1, 1, 1]]
    both = (
        tmp_path / "both/visual_embeddings_textual_embeddings_concat/transformers/openai/clip-vit/1"
    )
    both.mkdir(parents=True)
    np.save(both / "B1.npy", np.ones((1, 8), np.float32))
    (fused,) = LAYOUTS["ducho"].read(tmp_path / "both").vectors
    assert (fused.modality, fused.name) == ("fused", "clip-vit-1-concat")  # and not visual
    np.save(
        tmp_path / "out/visual_embeddings/torch/ResNet50/avgpool/B2.npy", np.ones(5, np.float32)
    )
    with pytest.raises(DataError, match="5 numbers"):
        LAYOUTS["ducho"].read(tmp_path / "out")


def test_damaged_files_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with pytest.raises(DataError, match="looks like none"):
        layout("auto", source)
    with pytest.raises(UsageError, match="mmrec"):
        layout("mmrecs", source)
    (source / "train.tsv").write_text("1\t2\t5\n")
    (source / "test.tsv").write_text("1\t2\t5\n")
    result = CliRunner().invoke(import_, [str(source), "--out", str(tmp_path / "out")])
    assert "no file val" in str(result.exception)
    (source / "val.tsv").write_text("1\t2\t5\n")
    (source / "visual_x").mkdir()
    (source / "visual_x/2.npy").write_bytes(b"\x93NUMPY broken")
    result = CliRunner().invoke(import_, [str(source), "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, DataError)
    np.save(source / "visual_x/2.npy", np.array([1.0, np.nan]))
    result = CliRunner().invoke(import_, [str(source), "--out", str(tmp_path / "out")])
    assert "NaN" in str(result.exception)
    assert not list(tmp_path.glob("out*"))
    np.save(source / "visual_x/2.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    result = CliRunner().invoke(import_, [str(source), "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, DataError)


def test_no_split_no_mmrec(tmp_path: Path) -> None:
    (tmp_path / "interactions.tsv").write_text(
        "user_id\titem_id\n" + "".join(f"u{k % 3}\ti{k}\n" for k in range(30))
    )
    bundle = read_dataset(tmp_path, None, {})
    assert list(bundle.parts) == [WHOLE]
    with pytest.raises(DataError, match="--split random"):
        LAYOUTS["mmrec"].write(bundle, tmp_path, "error")
    assert list(read_dataset(tmp_path, "random", {}).parts) == list(PARTS)


def test_a_sequence_of_tokens_is_as_many_categories(tmp_path: Path) -> None:
    folder = tmp_path / "mini"
    folder.mkdir()
    (folder / "mini.inter").write_text("user_id:token\titem_id:token\nu\t0\nu\t1\nv\t2\n")
    (folder / "mini.item").write_text(
        "item_id:token\tclass:token_seq\tmaker:token\n"
        "0\tAction Comedy\tA B\n1\tAction\tA B\n2\tDrama  Comedy\tC\n"
    )
    done = CliRunner().invoke(import_, [str(folder), "--out", str(tmp_path / "d")])
    assert done.exit_code == 0, done.output
    ids = ["0", "1", "2"]
    for column, expected in (("class", 3), ("maker", 2)):
        topics, _ = read_categories(tmp_path / "d", column, ids)
        assert len(set(topics.topics.tolist())) == expected
    texts = read_items(tmp_path / "d")
    assert texts is not None and texts["class"].tolist()[0] == "Action Comedy"
    (tmp_path / "d/dataset.json").write_text("{")
    with pytest.raises(DataError, match=r"dataset.json: cannot be read"):
        read_categories(tmp_path / "d", "class", ids)


def test_titles_of_several_lines_become_one(tmp_path: Path) -> None:
    folder = tmp_path / "ml"
    folder.mkdir()
    (folder / "MicroLens-50k_pairs.csv").write_text("user,item,timestamp\n7,2,1583378629\n")
    (folder / "MicroLens-50k_titles.csv").write_text('Item,Title\n1,"cats,\n\tdogs"\n2,"a \r\nb"\n')
    done = CliRunner().invoke(import_, [str(folder), "--out", str(tmp_path / "d")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "d/items.tsv").read_text() == "item_id\ttitle\n1\tcats, dogs\n2\ta b\n"


def lists_of(folder: Path, **files: str) -> Path:
    folder.mkdir()
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def test_lists_of_items_per_user_are_read_with_their_ids(tmp_path: Path) -> None:
    folder = lists_of(
        tmp_path / "gowalla",
        train="0 0 1 2 3 4 5 6 7 8 9\n1 2\n2 0 2\n",
        test="0 10\n1 0 1\n2\n",
        item_list="org_id remap_id\n" + "".join(f"L{i} {i}\n" for i in range(11)),
        user_list="org_id remap_id\nann lee 0\nbob 1\ncid 2\n",
    )
    done = CliRunner().invoke(import_, [str(folder), "--out", str(tmp_path / "d")])
    assert done.exit_code == 0, done.output
    assert "10% of each user's training rows (seed 42)" in done.output
    split = load_split(tmp_path / "d").training
    assert (split.train.n_users, split.valid.users.size) == (3, 2)  # of ann lee and cid; bob has 1
    rows = read_interactions(tmp_path / "d/splits/lightgcn/test.tsv")
    assert list(zip(rows.user_ids, rows.item_ids, strict=True)) == [
        ("ann lee", "L10"), ("bob", "L0"), ("bob", "L1"),
    ]  # fmt: skip
    (folder / "valid.txt").write_text("2 4\n")
    assert set(LAYOUTS["lightgcn"].read(folder).parts) == {"train", "valid", "test"}
    (folder / "train.txt").write_text("0 1 x\n")
    with pytest.raises(DataError, match="train.txt, line 1: 'x' is no number"):
        LAYOUTS["lightgcn"].read(folder)


def test_rows_of_equal_length_are_not_taken_for_lists(tmp_path: Path) -> None:
    folder = lists_of(tmp_path / "x", train="0\t1\t5\n2\t3\t4\n", test="0\t3\t1\n")
    (folder / "val.txt").write_text("2\t1\t3\n")
    assert layout("auto", folder)[0] == "elliot"


def test_lists_longer_than_a_row_are_lists_however_equal_they_are(tmp_path: Path) -> None:
    folder = lists_of(tmp_path / "x", train="\ufeff0 1 2 3 4\n1 2 3 4 5\n", test="0 5\n1 1\n")
    assert layout("auto", folder)[0] == "lightgcn"
    with pytest.raises(DataError, match=r"blanks between them: `mmbench data import FOLDER`"):
        read_interactions(folder / "train.txt")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("v_feat.npy", "MMGCN's"),
        ("5-core/train.json", "LATTICE's"),
        ("ml.train.rating", "NCF's"),
        ("behaviors.tsv", "MIND's"),
        ("data.pkl", "can run code"),
        ("orders.xlsx", "save it as CSV"),
        ("orders.csv", "give the files themselves"),
    ],
)
def test_a_layout_that_is_not_read_is_named(tmp_path: Path, file: str, name: str) -> None:
    path = tmp_path / "x" / file
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    with pytest.raises(DataError, match=name):
        layout("auto", tmp_path / "x")
