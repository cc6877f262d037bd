"""Masks, controls and policies in recipes: names of runs, what is refused, what a run records."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from tests.mmbench.conftest import write_dataset

from mmbase.cli import run as shell
from mmbench.analysis.controls import content_gains, pairs_of
from mmbench.cli import cli
from mmbench.commands.compare import compare
from mmbench.commands.report import report
from mmbench.config import Recipe, make_recipe
from mmbench.data.missing import POLICIES
from mmbench.runs.finished_runs import find_runs, group
from mmbench.runs.inputs import Inputs, load_inputs
from mmbench.runs.recipe_lists import read_plan

BOTH = {"visual": 0.4, "textual": 0.4}


def loaded(data: Path, **values: object) -> tuple[Recipe, Inputs]:
    return load_inputs(make_recipe(data=str(data), **{"model": "vbpr", **values}))


def call(*arguments: object) -> tuple[int, str]:
    """Exit code and output of a command line."""
    from contextlib import redirect_stderr, redirect_stdout
    from io import StringIO

    out = StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        code = shell(cli, list(map(str, arguments)), prog_name="mmbench")
    return code, out.getvalue()


def as_ever(recipe: Recipe, missing: str) -> str:
    """The digest of a recipe of before masks and controls, computed as then."""
    plain = recipe.model_dump(mode="json") | {"missing": missing}
    for name in ("data", "columns", "mask", "pattern", "control", "mask_seed", "start_from"):
        del plain[name]
    del plain["evaluation"]["select_decimals"]
    for name in recipe.settings.ADDED:
        del plain["settings"][name]
    text = json.dumps([plain], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=5).hexdigest()


def test_recipes_of_before_have_the_names_of_before() -> None:
    assert Recipe(model="vbpr").digest() == as_ever(Recipe(model="vbpr"), "mean")
    for model in ("vbpr", "bpr-mf"):
        old, new = (Recipe(model=model, missing=name) for name in ("zero", "zeros"))
        assert old == new
        assert old.digest() == as_ever(old, "zero")
    assert not {"mask", "pattern", "control", "mask_seed"} & set(Recipe(model="vbpr").dump())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"mask": {"visual": 0}}, {}),
        ({"pattern": "popular"}, {}),  # of nothing
        ({"mask_seed": 3}, {}),  # nothing is drawn
        ({"missing": {"policy": "pagerank"}}, {"missing": "pagerank:alpha=0.1"}),
        ({"mask": BOTH, "model": "bpr-mf"}, {"model": "bpr-mf"}),
        ({"control": {"visual": "noise"}, "model": "bpr-mf"}, {"model": "bpr-mf"}),
        ({"missing": "heat", "model": "bpr-mf"}, {"model": "bpr-mf"}),
        (
            {"mask": {"visual": 0.2}, "control": {"visual": "absent"}},
            {"control": {"visual": "absent"}},
        ),
    ],
)
def test_what_changes_nothing_changes_no_name(
    one: dict[str, object], other: dict[str, object]
) -> None:
    first, second = (Recipe(**{"model": "vbpr", **values}) for values in (one, other))  # type: ignore[arg-type]
    assert first.dump() == second.dump()
    assert Recipe(**first.dump()).dump() == first.dump()


@pytest.mark.parametrize(
    "values",
    [
        {"mask": {"visual": 0.1}},
        {"mask": {"visual": 0.1}, "pattern": "popular"},
        {"mask": {"visual": 0.1}, "mask_seed": 1},
        {"control": {"visual": "noise"}},
        {"missing": "random", "mask_seed": 1},
        {"missing": "pagerank:alpha=0.2"},
        {"missing": "drop", "model": "bpr-mf", "mask": {"visual": 0.1}},
    ],
)
def test_what_changes_numbers_changes_the_name_and_survives_a_file(
    values: dict[str, object],
) -> None:
    recipe = Recipe(**{"model": "vbpr", **values})  # type: ignore[arg-type]
    plain = Recipe(model=recipe.model)
    assert recipe.digest() != plain.digest()
    assert Recipe(**yaml.safe_load(yaml.safe_dump(recipe.dump()))).digest() == recipe.digest()


def test_a_sweep_is_one_recipe(tmp_path: Path) -> None:
    plan = {
        "model": ["bpr-mf", "vbpr"],
        "missing": ["zeros", {"policy": "heat", "t": 2}, "pagerank", "mean"],
        "mask": [{}, {"visual": 0.3}],
        "control": [{}, {"visual": "shuffled"}],
    }
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(plan))
    recipes = read_plan(path)
    # Without content there is nothing to treat: zeros, and the default for what it never had.
    alone = [one.dump()["missing"] for one in recipes if one.model == "bpr-mf"]
    assert alone == ["zeros", "mean"]
    assert sum(one.model == "vbpr" for one in recipes) == 4 * 2 * 2


def test_a_model_without_content_is_dropped_from_as_others_are(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    control = [{}, {"visual": "shuffled"}, {"visual": "absent"}]
    path.write_text(yaml.safe_dump({"model": "bpr-mf", "missing": "drop", "control": control}))
    recipes = read_plan(path)
    assert [dict(one.treatment.control) for one in recipes] == [{}, {"visual": "absent"}]
    assert len({one.digest() for one in recipes}) == 2


BAD = [
    (["--mask", "visual=1"], 2, "mask.visual"),
    (["--mask", "visual=-0.1"], 2, "mask.visual"),
    (["--mask", "visual=lots"], 2, "mask.visual"),
    (["--mask", "audio=0.1"], 2, "unknown modality in mask 'audio'"),
    (["--mask", "audio=0.1", "--features", "visual=toy"], 2, "unknown modality in mask 'audio'"),
    (["--control", "textul=noise"], 2, "Did you mean 'textual'"),
    (["--control", "visual=mixed"], 2, "control.visual"),
    (["--control", "visual=absent", "--control", "textual=absent"], 2, "every modality is absent"),
    (["--mask", "visual=0.1", "--pattern", "rare"], 2, "rare"),
    (["--mask", "visual=0.1", "--model", "bpr-mf"], 2, "none of these models uses content"),
    (["--pattern", "popular"], 2, "there is no mask"),
    (["--mask-seed", "3"], 2, "nothing is drawn"),
    (["--missing", "pagerang"], 2, "Did you mean 'pagerank'"),
    (["--missing", "pagerank:alpha=0"], 2, "alpha = 0"),
    (["--missing", "pagerank:alpha=1.5"], 2, "alpha = 1.5"),
    (["--missing", "pagerank:beta=1"], 2, "policy pagerank 'beta'. Choose one of: alpha, form"),
    (["--missing", "heat:t=-1"], 2, "t = -1"),
    (["--missing", "neighbours:top_k=0"], 2, "top_k = 0"),
    (["--missing", "multihop:form=published"], 2, "form = 'published'"),
    (["--missing", "learned:dropout=1"], 2, "dropout = 1"),
    (["--missing", "learned", "--model", "content-knn"], 2, "content-knn"),
    (["--missing", "drop", "--mask", "visual=0.999"], 1, "drop leaves no interaction"),
    (["--mask", "visual=0.999"], 1, "no item of training keeps its vector"),
]


@pytest.mark.parametrize(("options", "code", "message"), BAD, ids=lambda one: str(one)[:40])
def test_bad_input_is_one_line_and_nothing_is_written(
    options: list[str], code: int, message: str, tmp_path: Path
) -> None:
    data = write_dataset(tmp_path / "toy")
    model = [] if "--model" in options else ["--model", "vbpr"]
    got, out = call("train", "-q", "--data", data, "--out", tmp_path / "runs", *model, *options)
    assert (got, message in out) == (code, True), out
    assert "Traceback" not in out and "unexpected" not in out
    assert not (tmp_path / "runs").exists()


def test_a_mask_takes_the_content_of_items_and_is_recorded(dataset: Path, tmp_path: Path) -> None:
    _, whole = loaded(dataset)
    _, masked = loaded(dataset, mask={"visual": 0.4})
    n = whole.split.training.n_trained
    before, after = (one.features["visual"] for one in (whole, masked))
    other, untouched = (one.features["textual"].vectors for one in (whole, masked))
    assert other.tobytes() == untouched.tobytes()
    lost = before.present & ~after.present
    assert (after.n_masked, after.n_masked_others) == (lost[:n].sum(), lost[n:].sum())
    assert after.n_masked == round(0.4 * before.present[:n].sum())
    np.testing.assert_array_equal(after.vectors[after.present], before.vectors[after.present])
    options = ["--mask", "visual=0.4", "--pattern", "popular", "--mask-seed", "7"]
    options += ["--control", "textual=shuffled", "--missing", "pagerank:alpha=0.2"]
    code, out = call(
        "train", "--data", dataset, "--out", tmp_path / "runs", "--model", "vbpr", "--set",
        "epochs=1", *options,
    )  # fmt: skip
    assert code == 0, out
    assert f"{after.n_masked} masked" in out and "shuffled in place of the real ones" in out
    (path,) = (tmp_path / "runs").iterdir()
    record = json.loads((path / "run.json").read_text())
    mask = record["features"]["visual"]["mask"]
    assert (mask["share"], mask["pattern"], mask["seed"]) == (0.4, "popular", 7)
    assert mask["masked"] == after.n_masked
    assert mask["reached"] == pytest.approx(0.4, abs=0.02)
    assert record["features"]["textual"]["control"] == "shuffled"
    missing = "pagerank:top_k=20,form=corrected,n_hops=1,alpha=0.2"
    assert record["treatment"] == {
        "missing": missing, "mask": {"visual": 0.4}, "pattern": "popular", "mask_seed": 7,
        "control": {"textual": "shuffled"}, "scaling": "none",
    }  # fmt: skip
    assert call("train", "--resume", path)[0] == 0  # its data are found again


def test_what_is_held_out_changes_nothing_that_is_trained_on(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "toy")
    code, out = call("data", "split", data, "--name", "a")
    assert code == 0, out
    (data / "splits/b").mkdir()
    for part in ("train", "valid", "test"):
        text = (data / f"splits/a/{part}.tsv").read_text().splitlines(keepends=True)
        rows = text if part == "train" else text[:1] + text[1::2]
        (data / f"splits/b/{part}.tsv").write_text("".join(rows))
    for missing in POLICIES:
        if missing == "drop":
            continue
        values = {"missing": missing, "mask": BOTH, "control": {"visual": "shuffled"}}
        (_, one), (_, other) = (loaded(data, split=name, **values) for name in "ab")
        n = one.split.training.n_trained
        assert n == other.split.training.n_trained
        for modality, features in one.features.items():
            theirs = other.features[modality].vectors[:n]
            np.testing.assert_array_equal(features.vectors[:n], theirs, err_msg=missing)


def test_with_nothing_missing_every_policy_gives_the_same_bytes(tmp_path: Path) -> None:
    from mmstore import FeatureSetWriter

    data = write_dataset(tmp_path / "toy")
    path = data / "features/audio/whole.h5"
    ids = [f"B{item:03d}X" for item in range(30)]
    vectors = np.random.default_rng(5).standard_normal((30, 5)).astype(np.float32)
    with FeatureSetWriter(path, modality="audio", dim=5, ids=ids, provenance={}) as writer:
        writer.write(np.arange(30), vectors)
        writer.finish()
    plan = tmp_path / "plan.yaml"
    values = {
        "data": str(data), "features": {"audio": "whole"}, "model": ["vbpr", "freedom"],
        "missing": ["mean", "drop", "pagerank", "learned:dropout=0.5"], "settings": {"epochs": 2},
    }  # fmt: skip
    expected = loaded(data, features={"audio": "whole"})[1].features["audio"].vectors.tobytes()
    for missing in POLICIES:
        _, inputs = loaded(data, features={"audio": "whole"}, missing=missing)
        assert inputs.features["audio"].vectors.tobytes() == expected, missing
    plan.write_text(yaml.safe_dump(values))
    code, out = call("run", plan, "--out", tmp_path / "runs", "-q")
    assert code == 0, out
    found: dict[str, set[bytes]] = {}
    for run in (tmp_path / "runs").iterdir():
        found.setdefault(run.name.split("-")[1], set()).add((run / "metrics.json").read_bytes())
    assert len(list((tmp_path / "runs").iterdir())) == 2 * 4
    assert {model: len(metrics) for model, metrics in found.items()} == {"vbpr": 1, "freedom": 1}


def test_drop_takes_items_out_of_everything_for_models_without_content_too(
    dataset: Path, tmp_path: Path
) -> None:
    _, whole = loaded(dataset, mask=BOTH)
    present = np.logical_and(*(one.present for one in whole.features.values()))
    training, test = whole.split.training, whole.split.test
    for model in ("vbpr", "bpr-mf"):
        recipe, inputs = loaded(dataset, mask=BOTH, missing="drop", model=model)
        found = inputs.split.training
        assert set(found.item_ids) == set(training.item_ids[present])
        assert found.train.n_edges == present[training.train.items].sum()
        assert found.valid.items.size == present[training.valid.items].sum()
        assert inputs.split.test.rows.items.size == present[test.rows.items].sum()
        assert all(one.present.all() for one in inputs.features.values())
        assert set(recipe.features) == {"visual", "textual"}
        told = inputs.setting(recipe.evaluation).describe()
        n_items = int((~present).sum())
        assert f"but for {n_items} without" in told["candidates"]
        assert told["dropped"]["train"] == training.train.n_edges - found.train.n_edges
        assert f"drop: {n_items} of {present.size} items lack" in found.notes[0]
    # What stays has the real vectors.
    ids = training.item_ids.tolist()
    for modality, one in inputs.features.items():
        rows = [ids.index(item) for item in found.item_ids]
        np.testing.assert_array_equal(one.vectors, whole.features[modality].vectors[rows])


def test_drop_changes_nothing_where_all_have_content(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "toy")
    ids = "\n".join(f"B{item:03d}X" for item in range(1, 30))  # the first one has no content
    rows = [
        line
        for line in (data / "interactions.tsv").read_text().splitlines()
        if line.split("\t")[1] in {*ids.split(), "item_id"}
    ]
    (data / "interactions.tsv").write_text("\n".join(rows) + "\n")
    (_, mean), (_, drop) = (loaded(data, missing=name) for name in ("mean", "drop"))
    assert drop.split.training.digest == mean.split.training.digest


def test_an_absent_modality_is_as_if_it_had_not_been_named(dataset: Path) -> None:
    recipe, inputs = loaded(dataset, control={"visual": "absent"})
    assert list(inputs.features) == ["textual"]
    assert recipe.features == {"visual": "toy", "textual": "words"}  # it is found again
    again, _ = load_inputs(Recipe(**recipe.dump()))
    assert again.dump() == recipe.dump()


def test_filled_vectors_are_computed_once_and_a_broken_file_is_computed_anew(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMBENCH_CACHE", str(tmp_path / "cache"))
    values = {"missing": "heat", "mask": BOTH}
    _, first = loaded(dataset, **values)
    files = sorted((tmp_path / "cache/filled").iterdir())
    assert len(files) == 2
    from mmbench.data.missing.series import Heat

    called: list[object] = []
    fill = Heat.fill
    monkeypatch.setattr(Heat, "fill", lambda self, gaps: called.append(1) or fill(self, gaps))
    _, again = loaded(dataset, **values)
    assert not called
    files[0].write_bytes(b"broken")
    _, anew = loaded(dataset, **values)
    assert len(called) == 1
    for modality, one in first.features.items():
        for other in (again, anew):
            assert other.features[modality].vectors.tobytes() == one.vectors.tobytes()
    loaded(dataset, **{**values, "missing": "heat:t=4"})
    assert len(list((tmp_path / "cache/filled").iterdir())) == 4
    monkeypatch.setenv("MMBENCH_CACHE", "off")
    _, other = loaded(dataset, **values)
    for modality, one in first.features.items():
        assert other.features[modality].vectors.tobytes() == one.vectors.tobytes()


@pytest.fixture(scope="module")
def controlled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("controlled")
    write_dataset(place / "toy", users=120, items=80)
    plan = {
        "data": str(place / "toy"), "model": ["bpr-mf", "vbpr"], "seed": [1, 2],
        "control": [{}, {"visual": "shuffled", "textual": "shuffled"}, {"visual": "constant"}],
        "settings": {"epochs": 16, "embedding_dim": 8, "lr": 0.05, "reg_weight": 0.0001},
        "evaluation": {"every": 8},
    }  # fmt: skip
    (place / "plan.yaml").write_text(yaml.safe_dump(plan))
    code, out = call("run", place / "plan.yaml", "--out", place / "runs", "-q")
    assert code == 0, out
    return place / "runs"


def test_the_gain_of_a_control_is_taken_from_that_of_the_real_vectors(controlled: Path) -> None:
    systems = group(find_runs([controlled]))
    assert len(pairs_of(systems)) == 2
    by_label = {system.label: system for system in systems}
    assert len(by_label) == 4  # bpr-mf runs once
    gains = content_gains(systems, ["Recall@20"])
    means = {name: np.mean(one.values("test", "Recall@20")) for name, one in by_label.items()}
    for one in gains:
        (control,) = (name for name in by_label if name != one.label and one.control in name)
        assert one.without == "bpr-mf"
        assert one.gain == pytest.approx(means[one.label] - means["bpr-mf"])
        assert one.content == pytest.approx(means[one.label] - means[control], abs=1e-9)
        assert one.interval[0] <= one.content <= one.interval[1]
        assert one.worse == (one.flag == "")
        assert ("not significantly worse" in one.sentence) is not one.worse
    # Half of the constant's content is there still: no difference that one could resolve.
    assert any(not one.worse for one in gains)


def test_report_and_compare_print_the_content(controlled: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(compare, [str(controlled)], catch_exceptions=False)
    assert "how much is content" in done.output
    assert "the control is not significantly worse" in " ".join(done.output.split())
    told = json.loads(
        CliRunner().invoke(compare, [str(controlled), "--json"], catch_exceptions=False).stdout
    )
    assert {one["metric"] for one in told["content"]} == {"Recall@20", "nDCG@20"}
    out = tmp_path / "report"
    done = CliRunner().invoke(report, [str(controlled), "--out", str(out)], catch_exceptions=False)
    pages = [page.read_text() for page in out.glob("*.md")]
    assert any("## How much is content" in page for page in pages)
    assert any("shuffled in place of the real ones" in page for page in pages)
