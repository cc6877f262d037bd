"""`mmx fetch`: the originals' formats, a bad network, and nothing half done."""

from __future__ import annotations

import csv
import gzip
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.mmx.download.amazon_mirror import asin, write_mirror

from mmstore import FeatureSet
from mmx.download import amazon
from mmx.download.fetch import fetch, fetch_images
from mmx.download.transfer import CHECKSUMS, DamagedDownload, Wanted, get
from mmx.errors import DataError, UsageError

Serve = Callable[[BaseHTTPRequestHandler, bytes], None]


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    """Serves `server.files`, each through `server.serve`, and remembers the requests."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            httpd.requests.append((self.path, self.headers.get("Range")))
            content = httpd.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            httpd.serve(self, content)

        def log_message(self, *arguments: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    httpd.files, httpd.requests, httpd.serve = {}, [], whole  # type: ignore[attr-defined]
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def whole(
    handler: BaseHTTPRequestHandler, content: bytes, *, kind: str = "application/octet-stream"
) -> None:
    start = int((handler.headers.get("Range") or "bytes=0-")[6:].rstrip("-"))
    handler.send_response(206 if start else 200)
    if start:
        handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
    handler.send_header("Content-Type", kind)
    handler.send_header("ETag", '"v1"')
    handler.send_header("Content-Length", str(len(content) - start))
    handler.end_headers()
    handler.wfile.write(content[start:])


def breaking_off(after: int) -> Serve:
    """Sends so many bytes of what was asked for and then resets the connection."""

    def serve(handler: BaseHTTPRequestHandler, content: bytes) -> None:
        start = int((handler.headers.get("Range") or "bytes=0-")[6:].rstrip("-"))
        if len(content) - start <= after:
            whole(handler, content)
            return
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        handler.send_header("ETag", '"v1"')
        handler.send_header("Content-Length", str(len(content) - start))
        handler.end_headers()
        handler.wfile.write(content[start : start + after])
        handler.wfile.flush()
        handler.close_connection = True
        handler.connection.close()

    return serve


def address(server: ThreadingHTTPServer, name: str = "/x.bin") -> str:
    return f"http://127.0.0.1:{server.server_address[1]}{name}"


def test_a_broken_connection_is_resumed(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(3_000_000)
    server.files["/x.bin"], server.serve = content, breaking_off(1_200_000)
    path = get(Wanted("a/x.bin", address(server)), tmp_path, wait=lambda s: None)
    assert path.read_bytes() == content
    assert server.requests[0][1] is None
    assert all(start is not None for _, start in server.requests[1:])
    assert not list(tmp_path.rglob("*.partial*"))
    assert json.loads((path.parent / CHECKSUMS).read_text())["x.bin"]["bytes"] == len(content)
    n = len(server.requests)
    assert get(Wanted("a/x.bin", address(server)), tmp_path) == path
    assert len(server.requests) == n
    path.write_bytes(content[:-1] + b"?")
    with pytest.raises(DataError, match="has changed since"):
        get(Wanted("a/x.bin", address(server)), tmp_path)


def test_what_has_arrived_is_kept_and_the_next_call_goes_on(
    server: ThreadingHTTPServer, tmp_path: Path
) -> None:
    content = np.random.default_rng(1).bytes(900_000)
    server.files["/x.bin"], server.serve = content, breaking_off(100_000)
    with pytest.raises(DataError, match="goes on from there"):
        get(Wanted("x.bin", address(server)), tmp_path, retries=2, wait=lambda s: None)
    have = (tmp_path / "x.bin.partial").stat().st_size
    assert 0 < have <= 300_000
    server.requests.clear()
    server.serve = whole
    assert get(Wanted("x.bin", address(server)), tmp_path).read_bytes() == content
    assert server.requests == [("/x.bin", f"bytes={have}-")]


def test_a_file_that_changed_meanwhile_is_begun_anew(
    server: ThreadingHTTPServer, tmp_path: Path
) -> None:
    (tmp_path / "x.bin.partial").write_bytes(b"old")
    (tmp_path / "x.bin.partial.stamp").write_text('"v0"')

    def serve(handler: BaseHTTPRequestHandler, content: bytes) -> None:
        del handler.headers["Range"]  # If-Range does not match: all of it
        whole(handler, content)

    server.files["/x.bin"], server.serve = b"new content", serve
    assert get(Wanted("x.bin", address(server)), tmp_path).read_bytes() == b"new content"


def test_back_off_grows_and_ends(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    def busy(handler: BaseHTTPRequestHandler, content: bytes) -> None:
        handler.send_error(503)

    server.files["/x.bin"], server.serve = b"x", busy
    pauses: list[float] = []
    with pytest.raises(DataError, match="HTTP 503"):
        get(Wanted("x.bin", address(server)), tmp_path, retries=4, wait=pauses.append)
    assert len(pauses) == 4
    assert pauses[3] > 2 * pauses[0]


@pytest.mark.parametrize("what", ["404", "html", "html-as-gzip", "checksum"])
def test_what_is_wrong_is_said_and_leaves_nothing(
    server: ThreadingHTTPServer, tmp_path: Path, what: str
) -> None:
    page = b"<!DOCTYPE html><p>moved"
    wanted = Wanted(
        "x.json.gz", address(server), gzip=True, sha256="0" * 64 if what == "checksum" else None
    )
    server.files["/x.bin"] = gzip.compress(b"{}") if what == "checksum" else page
    if what == "404":
        server.files.clear()
    if what == "html":
        server.serve = lambda handler, content: whole(
            handler, content, kind="text/html; charset=utf-8"
        )
    expected = {
        "404": "HTTP 404",
        "html": "web page",
        "html-as-gzip": "web page",
        "checksum": "wrong checksum",
    }[what]
    with pytest.raises(DataError, match=expected) as caught:
        get(wanted, tmp_path, wait=lambda s: None)
    assert "--mirror" in str(caught.value)
    assert not (tmp_path / "x.json.gz").exists()
    server.files["/x.bin"], server.serve = gzip.compress(b"{}"), whole
    assert get(Wanted("x.json.gz", address(server), gzip=True), tmp_path).is_file()


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mirror(tmp_path_factory.mktemp("mirror"), "Office_Products")


def test_a_mirror_becomes_a_dataset_folder(mirror: Path, tmp_path: Path) -> None:
    out = tmp_path / "office"
    done = fetch("amazon-2014/office", out, downloads=tmp_path / "downloads", mirror=str(mirror))
    assert done.counts["repeated reviews"] == 1
    assert done.counts["repeated metadata"] == 1
    assert done.counts["items without metadata"] == 1
    assert done.counts["items without image vector"] == 1
    assert done.counts["image vectors cut off at the end"] == 1
    rows = [line.split("\t") for line in (out / "items.tsv").read_text().splitlines()]
    items = {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[1:]}
    assert list(items) == sorted(items)
    assert items[asin(5)] == {
        "item_id": "B000000005",
        "title": items[asin(5)]["title"],
        "brand": "Pilot",
        "categories": "Office Products Pens Arts",
        "description": "first part second part",
        "image_url": "http://images.example/5.jpg",
    }
    assert items[asin(5)]["title"].startswith("Desk organizer 2-tier")
    assert items[asin(4)]["description"] == ""
    assert items[asin(1)]["title"] == ""
    table = [line.split("\t") for line in (out / "interactions.tsv").read_text().splitlines()]
    assert table[0] == ["user_id", "item_id", "rating", "timestamp"]
    assert len(table) - 1 == done.counts["interactions"]
    assert {row[1] for row in table[1:]} == set(items)
    with FeatureSet(out / "features/visual/amazon-cnn.h5") as features:
        assert features.ids.tolist() == list(items)
        vectors, present = features.matrix([asin(2), asin(3)])
        assert present.tolist() == [False, True]
        assert vectors.shape == (2, 4096)
    assert fetch(
        "amazon-2014/office", out, downloads=tmp_path / "downloads", mirror=str(mirror)
    ).already
    assert not list(tmp_path.rglob("*.partial"))


def test_files_at_hand_and_other_files(mirror: Path, tmp_path: Path) -> None:
    given = {
        "reviews": mirror / "categoryFiles/reviews_Office_Products_5.json.gz",
        "meta": mirror / "categoryFiles/meta_Office_Products.json.gz",
        "features": mirror / "image_features/categoryFiles/image_features_Office_Products.b",
    }
    fetch("amazon-2014/office", tmp_path / "a", downloads=tmp_path / "d", from_files=given)
    assert not (tmp_path / "d").exists()
    other = write_mirror(tmp_path / "m2", "Office_Products", seed=1)
    with pytest.raises(DataError, match="made of other files"):
        fetch("amazon-2014/office", tmp_path / "a", downloads=tmp_path / "d", mirror=str(other))
    with pytest.raises(UsageError, match="reviews, meta"):
        fetch(
            "amazon-2018/office",
            tmp_path / "b",
            downloads=tmp_path / "d",
            from_files={"features": given["features"]},
        )


def test_a_truncated_gzip_converts_nothing_and_is_got_anew(mirror: Path, tmp_path: Path) -> None:
    broken = write_mirror(tmp_path / "broken", "Office_Products")
    path = broken / "categoryFiles/meta_Office_Products.json.gz"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    options: Any = {"downloads": tmp_path / "downloads", "mirror": str(broken)}
    with pytest.raises(DamagedDownload, match="cut off or damaged") as caught:
        fetch("amazon-2014/office", tmp_path / "out", **options)  # type: ignore[arg-type]
    assert not caught.value.path.exists() and not list(tmp_path.glob("out*"))
    with pytest.raises(DamagedDownload):
        fetch("amazon-2014/office", tmp_path / "out", from_files={"meta": path}, **options)
    assert path.exists()  # not a download of ours
    path.write_bytes(content)
    assert fetch("amazon-2014/office", tmp_path / "out", **options).counts["items"] > 0


def test_lines_are_data_and_bad_ones_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "meta.json.gz"
    bad = [
        "__import__('os').system('touch hacked')",
        "{'a': open('x')}",
        "[1, 2]",
        "{'asin': 'x'",
        "{" * 5000,
    ]
    with gzip.open(path, "wt") as file:
        file.write(
            "\n".join([*bad, "{'asin': 'B1', 'title': \"it's\"}", '{"asin": "B2", "title": null}'])
            + "\n"
        )
    counts = amazon.Counts()
    assert [record["asin"] for record in amazon.records(path, counts)] == ["B1", "B2"]
    assert len(counts.bad_lines) == 5
    assert "line 1" in counts.bad_lines[0]
    assert not Path("hacked").exists()
    with gzip.open(path, "wt") as file:
        file.write("nonsense\n" * 200)
    with pytest.raises(DataError, match="is this the right file"):
        list(amazon.records(path, amazon.Counts()))


@pytest.mark.parametrize("content", [b"a,b\n\xff\xfe", b"a,b\n" + b"x" * 200_000])
def test_a_table_that_is_none_is_no_traceback(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "r.csv").write_bytes(content)
    limit = csv.field_size_limit(100_000)
    try:
        with pytest.raises(DataError, match="is this the right file"):
            list(amazon.records(tmp_path / "r.csv", amazon.Counts()))
    finally:
        csv.field_size_limit(limit)


def test_the_later_collections(tmp_path: Path) -> None:
    review = {
        "user_id": "U",
        "parent_asin": "P",
        "asin": "C",
        "rating": 5.0,
        "timestamp": 1700000000123,
    }
    with gzip.open(tmp_path / "r.jsonl.gz", "wt") as file:
        file.write(
            json.dumps(review)
            + "\n"
            + json.dumps({**review, "parent_asin": None, "asin": "C2"})
            + "\n"
        )
    assert list(amazon.interactions(tmp_path / "r.jsonl.gz", amazon.Counts())) == [
        ("U", "P", "5", "1700000000.123"),  # Unix time: seconds, as in the earlier collections
        ("U", "C2", "5", "1700000000.123"),
    ]
    with gzip.open(tmp_path / "r.csv.gz", "wt") as file:
        file.write("user_id,parent_asin,rating,timestamp\nU,P,4.0,1700000000000\n")
    assert list(amazon.interactions(tmp_path / "r.csv.gz", amazon.Counts())) == [
        ("U", "P", "4", "1700000000")
    ]
    meta = {
        "parent_asin": "P",
        "title": "T",
        "store": "S",
        "images": [{"large": "https://i/x.jpg"}],
        "description": [],
    }
    with gzip.open(tmp_path / "m.jsonl.gz", "wt") as file:
        file.write(json.dumps(meta) + "\n")
    texts = amazon.metadata(tmp_path / "m.jsonl.gz", {"P"}, amazon.Counts())["P"]
    assert (texts["brand"], texts["image_url"], texts["description"]) == (
        "S",
        "https://i/x.jpg",
        "",
    )
    names = {
        c: [w.url for w in amazon.wanted_files(c, "beauty", None).values()] for c in amazon.FILES
    }
    assert names["amazon-2018"][0].endswith("categoryFilesSmall/All_Beauty_5.json.gz")
    assert names["amazon-2023"][1].endswith("meta_Beauty_and_Personal_Care.jsonl.gz")


@pytest.mark.parametrize(
    "broken",
    [{"overall": None}, {"overall": "five"}, {"unixReviewTime": None}, {"overall": np.nan}],
)
def test_a_review_without_a_number_is_counted_and_left_out(
    tmp_path: Path, broken: dict[str, object]
) -> None:
    review = {"reviewerID": "U", "asin": "P", "overall": 4, "unixReviewTime": 1_400_000_000}
    path = tmp_path / "r.json"
    path.write_text(json.dumps(review | broken) + "\n" + json.dumps(review) + "\n")
    counts = amazon.Counts()
    assert list(amazon.interactions(path, counts)) == [("U", "P", "4", "1400000000")]
    assert counts.values == {"reviews whose rating or time is no number": 1}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("amazon-2015/office", "amazon-2014"),
        ("amazon-2014/offce", "office"),
        ("amazon-2018/baby", "unknown category of amazon-2018"),  # the collection has none
    ],
)
def test_unknown_names_get_the_closest(name: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        amazon.parse_name(name)


def test_images_have_a_status_each_and_failed_ones_are_tried_again(
    server: ThreadingHTTPServer, tmp_path: Path
) -> None:
    rows = [
        ("B1", "/1.jpg"),
        ("B2", "/2.png?size=9"),
        ("B3", ""),
        ("a/../b", "/1.jpg"),
        ("B5", "/gone.jpg"),
    ]
    lines = [
        "item_id\timage_url",
        *(f"{item}\t{address(server, url) if url else ''}" for item, url in rows),
    ]
    (tmp_path / "items.tsv").write_text("\n".join(lines) + "\n")
    server.files |= {"/1.jpg": b"jpeg", "/2.png?size=9": b"png"}
    assert fetch_images(tmp_path, pause_s=0) == {"ok": 2, "missing": 1, "failed": 2}
    assert {path.name for path in (tmp_path / "images").iterdir()} == {
        "B1.jpg",
        "B2.png",
        "status.tsv",
    }
    server.files["/gone.jpg"] = b"back"
    server.requests.clear()
    assert fetch_images(tmp_path, pause_s=0) == {"ok": 3, "missing": 1, "failed": 1}
    assert [path for path, _ in server.requests] == ["/gone.jpg"]


def test_an_address_that_is_none_fails_alone_and_opens_no_file(
    server: ThreadingHTTPServer, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(b"secret")
    rows = [
        ("B1", secret.as_uri()),
        ("B2", address(server, "/a b.jpg")),
        ("B3", "x"),
        ("B4", address(server, "/4.jpg")),
    ]
    data = tmp_path / "data"
    data.mkdir()
    (data / "items.tsv").write_text("\n".join(["item_id\timage_url", *map("\t".join, rows)]) + "\n")
    server.files["/4.jpg"] = b"jpeg"
    assert fetch_images(data, pause_s=0) == {"ok": 1, "missing": 0, "failed": 3}
    assert {path.name for path in (data / "images").iterdir()} == {"B4.jpg", "status.tsv"}
