"""Datasets and stores at addresses: the sets of local folders; clear words where they change."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tests.mmx.extraction.test_extract import FakeEncoder, Recorder

from mmstore import FeatureSet, StoreError
from mmx.config import RunConfig, SetConfig
from mmx.errors import DataError, ToolError, UsageError
from mmx.extraction import remote
from mmx.extraction.extract import extract
from mmx.extraction.summary import Summary

pytestmark = pytest.mark.skipif(find_spec("fsspec") is None, reason="needs the extra remote")
TEXTS = {f"i{n:03d}": ("bad" if n == 7 else f"text {n % 13}") for n in range(200)}


class Somewhere:
    """A dataset at an address, with a file per item but the last ones."""

    def __init__(self, address: str) -> None:
        import fsspec

        self.address = address
        self.system, self.root = fsspec.core.url_to_fs(address)
        self.write("items.tsv", "item_id\n" + "".join(f"{item}\n" for item in TEXTS))
        for item, text in list(TEXTS.items())[:-10]:
            self.write(f"images/{item}.jpg", text)

    def write(self, name: str, text: str) -> None:
        path = f"{self.root}/{name}"
        self.system.makedirs(path.rpartition("/")[0], exist_ok=True)
        self.system.pipe_file(path, text.encode())

    def remove(self, name: str) -> None:
        self.system.rm_file(f"{self.root}/{name}")

    def names(self, folder: str = "features/visual") -> list[str]:
        found = self.system.find(f"{self.root}/{folder}")
        return sorted(name.rpartition("/")[2] for name in found)

    def copy(self, to: Path) -> Path:
        for name in self.system.find(self.root):
            path = to / str(name).strip("/").removeprefix(self.root.strip("/")).strip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.system.cat_file(name))
        return to

    def go(self, encoder: FakeEncoder | None = None, **options: Any) -> Summary:
        return go(Path(self.address), encoder, **options)


def go(root: Path, encoder: FakeEncoder | None = None, **options: Any) -> Summary:
    built = encoder or FakeEncoder("visual")
    progress = options.pop("progress", None)
    return extract(
        RunConfig(data=root, device="cpu", **options),
        SetConfig(modality="visual", model="fake", batch_size=4),
        progress=progress,
        build=lambda model, **_: built,
    )


@pytest.fixture(autouse=True)
def staging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMX_STAGING", str(tmp_path / "staging"))
    return tmp_path / "staging"


@pytest.fixture(params=["memory", "file"])
def there(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Somewhere]:
    import fsspec

    yield Somewhere(
        "memory://catalogue" if request.param == "memory" else f"file://{tmp_path}/catalogue"
    )
    fsspec.filesystem("memory").store.clear()


def killed_after(n_batches: int) -> FakeEncoder:
    def killed(n: int) -> None:
        if n > n_batches:
            raise KeyboardInterrupt

    encoder = FakeEncoder("visual")
    encoder.on_encode = killed
    return encoder


def test_the_set_is_that_of_a_local_folder(there: Somewhere, tmp_path: Path, staging: Path) -> None:
    local = go(there.copy(tmp_path / "local"))
    progress = Recorder()
    summary = there.go(progress=progress)
    assert (summary.digest, summary.counts, summary.errors) == (
        local.digest,
        local.counts,
        local.errors,
    )
    assert summary.stages.n_bytes == local.stages.n_bytes
    assert progress.advanced == 200
    assert there.names() == ["fake.cost.json", "fake.h5"]
    assert not list(staging.iterdir())
    there.copy(tmp_path / "back")
    with (
        FeatureSet(tmp_path / "back/features/visual/fake.h5") as copied,
        FeatureSet(local.path) as own,
    ):
        provenance = [{**each.provenance, "created": ""} for each in (copied, own)]
        assert provenance[0] == provenance[1]
        assert copied.verify() == []
    assert there.go().already_complete


def test_a_run_that_was_killed_goes_on(there: Somewhere, tmp_path: Path, staging: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        there.go(killed_after(20), workers=1)
    assert there.names() == []
    again = FakeEncoder("visual")
    summary = there.go(again)
    assert 0 < len(again.loaded) < 160
    assert summary.digest == go(there.copy(tmp_path / "local")).digest
    assert not list(staging.iterdir())


def test_sets_are_extended_tried_again_and_replaced(there: Somewhere, tmp_path: Path) -> None:
    first = there.go()
    there.write("images/i007.jpg", "good again")
    assert there.go(retry_failed=True).counts.corrupt == 0
    there.write("items.tsv", "item_id\n" + "".join(f"{item}\n" for item in [*TEXTS, "new"]))
    there.write("images/new.jpg", "new")
    encoder = FakeEncoder("visual")
    assert there.go(encoder, extend=True).counts.ok == first.counts.ok + 2
    assert encoder.loaded == ["new"]
    whole = there.go(restart=True)
    assert whole.digest == go(there.copy(tmp_path / "local"), restart=True).digest


def test_a_store_may_be_elsewhere(there: Somewhere, tmp_path: Path) -> None:
    local = go(there.copy(tmp_path / "local"), out=Path(f"file://{tmp_path}/store"))
    assert (tmp_path / "store/visual/fake.h5").is_file()
    assert there.go(out=tmp_path / "own").digest == local.digest
    assert (tmp_path / "own/visual/fake.h5").is_file()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda there: there.remove("images/i150.jpg"), "is gone"),
        (lambda there: there.write("images/i150.jpg", "other"), "has 5 now"),
    ],
)
def test_a_dataset_that_changes_while_it_is_read(
    there: Somewhere, tmp_path: Path, change: Any, told: str
) -> None:
    encoder = FakeEncoder("visual")
    encoder.on_encode = lambda n: change(there) if n == 1 else None
    with pytest.raises(DataError, match=told) as raised:
        there.go(encoder, workers=1)
    assert f"{there.address}/images/i150.jpg: " in str(raised.value)
    assert "\n" not in str(raised.value)
    assert there.names() == []
    there.write("images/i150.jpg", TEXTS["i150"])
    assert there.go().digest == go(there.copy(tmp_path / "local")).digest


def test_what_is_read_back_is_compared(
    there: Somewhere, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = type(there.system).put_file

    def cut(self: Any, ours: str, theirs: str, **options: Any) -> None:
        put(self, ours, theirs, **options)
        self.pipe_file(theirs, self.cat_file(theirs)[:-1])

    with monkeypatch.context() as patch, pytest.raises(ToolError, match="is kept here"):
        patch.setattr(type(there.system), "put_file", cut)
        there.go()
    assert "fake.h5" not in there.names()
    encoder = FakeEncoder("visual")
    assert there.go(encoder).counts.ok == 189
    assert encoder.loaded == []  # it was only uploaded
    assert not list(staging.iterdir())


def test_a_set_that_was_damaged_there_is_not_taken(there: Somewhere) -> None:
    there.go()
    name = f"{there.root}/features/visual/fake.h5"
    content = bytearray(there.system.cat_file(name))
    content[-3000:-2000] = bytes(1000)
    there.system.pipe_file(name, bytes(content))
    with pytest.raises(StoreError):
        there.go(retry_failed=True)


@pytest.mark.parametrize("address", ["memory://nothing", "file:///no/such/folder"])
def test_no_such_folder_is_one_line(address: str) -> None:
    with pytest.raises(DataError, match=f"{address}: no such dataset folder"):
        go(Path(address))


def test_what_an_address_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ToolError, match="no address that fsspec reads"):
        go(Path("nosuch://bucket/x"))
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ToolError, match=r"s3://bucket/x: .*\[remote\]"):
        go(Path("s3://bucket/x"))


def test_memory_is_of_one_process() -> None:
    with pytest.raises(UsageError, match="memory of one process"):
        go(Path("memory://x"), engine="ray")


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("s3://bucket/a/b", "s3://bucket/a/b"),
        ("file:///a/b", "file:///a/b"),
        ("memory://x", "memory://x"),
        ("data/demo", ""),
        ("/data/s3:/x", ""),
        ("C:/data", ""),
    ],
)
def test_an_address_is_told_from_a_path(given: str, address: str) -> None:
    assert remote.address_in(Path(given)) == address


def test_folders_of_killed_processes_are_removed(staging: Path, tmp_path: Path) -> None:
    left = staging / "data-999999999-x.mmx-staged"
    left.mkdir(parents=True)
    Somewhere(f"file://{tmp_path}/catalogue").go()
    assert not left.exists()
