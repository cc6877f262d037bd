"""The demonstration catalogue: synthetic, and generated on the user's machine.

Items have a hidden style that shows in a drawn picture, in a description and in a short sound;
users' taste lies in the same hidden space (`mmx.demo.latent`). Interactions per item are few, so
that content helps to tell who will like what. The catalogue has the flaws of real ones: items
without picture, text or sound, and one corrupt file of each kind. Everything follows from the seed:
a second run writes the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from mmbase.outputs import remove
from mmbase.progress import Progress, Silent
from mmx.demo.latent import Picks, controls, draw_items, draw_picks, draw_space, style_shares
from mmx.demo.render import (
    draw_image,
    encode_image,
    encode_sound,
    make_sound,
    require_pillow,
    write_words,
)
from mmx.errors import DataError, UsageError

MIN_ITEMS = 24
MIN_USERS = 5
MISSING_SHARE = 0.03  # of the items, for each kind of content
CONTENT_NOISE = 0.2  # standard deviation that each modality adds to the factors, which have about 1
GENERATOR = "mmx demo"
TEXT_COLUMNS = ("title", "description", "brand", "category")
# Bytes that no UTF-8 text can hold (0xFF never occurs in it), as a file that was cut or mixed from
# encodings has.
CORRUPT_TEXT = b"Lampe \xe9l\xff\xfe\x80gante"


@dataclass(frozen=True)
class _Faults:
    """Indices of the items that lack a kind of content, and of the one that has it damaged."""

    missing: dict[str, frozenset[int]]
    corrupt: dict[str, int]


def write_demo(
    out: str | PathLike[str],
    *,
    items: int = 800,
    users: int = 1500,
    seed: int = 7,
    space: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Write the demonstration catalogue as the dataset folder `out`.

    `out` then holds `items.tsv`, `images/<item_id>.jpg`, `audio/<item_id>.wav`, `interactions.tsv`
    and `dataset.json`. It appears in one step when it is complete. An earlier demonstration
    catalogue of the same parameters is written afresh, and what else lies in its folder (features,
    splits) stays.

    Args:
        out: Absent, empty, or an earlier demonstration catalogue.
        items: At least 24.
        users: At least 5; each gets at least five interactions.
        seed: At least 0; determines every byte.
        space: Seed of the hidden space and of how it is drawn, written and played, if it is not to
            be that of `seed`: of another catalogue, whose styles and tastes are then shared here.
        progress: Shows finished items.

    Raises:
        UsageError: A number is too small.
        DataError: `out` is something else than a demonstration catalogue, or one of other
            parameters with features or splits beside it.
        ToolError: Pillow is not installed.
    """
    for name, given, least in (
        ("--items", items, MIN_ITEMS),
        ("--users", users, MIN_USERS),
        ("--seed", seed, 0),
        ("--space", seed if space is None else space, 0),
    ):
        if given < least:
            raise UsageError(f"mmx demo: {name} must be at least {least} (got {given})")
    require_pillow()
    out = Path(out)
    parameters = {"items": items, "users": users, "seed": seed}
    if space not in (None, seed):
        parameters["space"] = space
    keep_others = _check_target(out, parameters)
    try:
        # One name, so that the next demo takes away what a killed one left.
        scratch = out.parent / f".{out.name}.partial"
        remove(scratch)
        folder, old = scratch / "new", scratch / "old"
        folder.mkdir(parents=True)
        try:
            _generate(folder, parameters, progress or Silent())
            if keep_others:
                # Entry by entry, so that what lies beside them is never moved at all.
                old.mkdir()
                for path in sorted(folder.iterdir()):
                    if path.is_dir() and (out / path.name).exists():
                        (out / path.name).rename(old / path.name)
                    path.replace(out / path.name)
            else:
                if out.exists():
                    out.rename(old)
                folder.rename(out)
        finally:
            remove(scratch, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{out}: the catalogue cannot be written ({reason})") from error


def _parameters_of(folder: Path) -> dict[str, object] | None:
    """The parameters of a demonstration catalogue; None for another folder."""
    try:
        described = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        generator = described["generator"]
        return dict(generator["parameters"]) if generator["tool"] == GENERATOR else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _check_target(out: Path, parameters: dict[str, int]) -> bool:
    """Whether `out` holds more than the catalogue, to be kept; raises if it may not be replaced."""
    if not out.exists() and not out.is_symlink():
        return False
    if not out.is_dir() or out.is_symlink():
        raise DataError(f"{out}: is not a folder; choose another place with --out")
    present = sorted(out.iterdir())
    if not present:
        return False
    earlier = _parameters_of(out)
    if earlier is None:
        raise DataError(
            f"{out}: holds something else than a demonstration catalogue (for instance "
            f"{present[0].name}), and is left as it is; choose another place with --out"
        )
    own = {"items.tsv", "images", "audio", "interactions.tsv", "dataset.json"}
    foreign = [path for path in present if path.name not in own]
    if foreign and earlier != parameters:
        raise DataError(
            f"{out}: {foreign[0].name} belongs to the catalogue of {_spell(earlier)} (asked for: "
            f"{_spell(parameters)}); delete the folder, or choose another place with --out"
        )
    return bool(foreign)


def _spell(parameters: dict[str, Any]) -> str:
    return " ".join(f"--{name} {value}" for name, value in sorted(parameters.items()))


def _generate(folder: Path, parameters: dict[str, int], progress: Progress) -> None:
    n_items, n_users = parameters["items"], parameters["users"]
    id_rng, item_rng, look_rng, sound_rng, fault_rng, user_rng = _streams(parameters["seed"])
    space = draw_space(item_rng, look_rng, sound_rng)
    if "space" in parameters:
        space = draw_space(*_streams(parameters["space"])[1:4])
    latent = draw_items(n_items, space.centres, item_rng)
    item_ids = _item_ids(n_items, id_rng)
    looks = controls(latent.factors, space.look, look_rng, noise=CONTENT_NOISE)
    sounds = controls(latent.factors, space.sound, sound_rng, noise=CONTENT_NOISE)
    shares = style_shares(latent)
    faults = _draw_faults(n_items, fault_rng)
    (folder / "images").mkdir()
    (folder / "audio").mkdir()
    rows = [b"\t".join(name.encode() for name in ("item_id", *TEXT_COLUMNS))]
    with progress.task("drawing items", n_items) as task:
        for index, item_id in enumerate(item_ids):
            # A generator per item: how one item is drawn never shifts the others.
            rng = np.random.default_rng([parameters["seed"], index])
            picture = encode_image(draw_image(looks[index], int(latent.style[index]), rng))
            sound = encode_sound(make_sound(sounds[index], rng))
            words = write_words(shares[index], rng)
            if index == faults.corrupt["image"]:
                picture = picture[: len(picture) // 3]  # a download that stopped
            if index == faults.corrupt["audio"]:
                sound = sound[:12] + b"\x00" * 64  # the RIFF header, then zeros instead of a format
            if index not in faults.missing["image"]:
                (folder / "images" / f"{item_id}.jpg").write_bytes(picture)
            if index not in faults.missing["audio"]:
                (folder / "audio" / f"{item_id}.wav").write_bytes(sound)
            if index in faults.missing["text"]:
                words = dict.fromkeys(TEXT_COLUMNS, "")
            cells = [words[name].encode() for name in TEXT_COLUMNS]
            if index == faults.corrupt["text"]:
                cells[:2] = [CORRUPT_TEXT, CORRUPT_TEXT]
            rows.append(b"\t".join([item_id.encode(), *cells]))
            task.advance()
    (folder / "items.tsv").write_bytes(b"\n".join(rows) + b"\n")
    picks = draw_picks(latent, n_users, user_rng)
    _write_interactions(folder / "interactions.tsv", item_ids, n_users, picks)
    described = _describe(folder, item_ids, parameters, picks, faults)
    (folder / "dataset.json").write_text(
        json.dumps(described, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def _streams(seed: int) -> list[np.random.Generator]:
    """Streams of a seed: ids, items, looks, sounds, faults, users."""
    return [np.random.default_rng(part) for part in np.random.SeedSequence(seed).spawn(6)]


def _item_ids(n_items: int, rng: np.random.Generator) -> list[str]:
    """Ten-character ids as shops have them: four fifths start with B0, the rest with zeros.

    The latter may end in X. A reader that takes ids for numbers loses both kinds.
    """
    letters = np.asarray(list("0123456789ABCDEFGHJKLMNPQRSTUVWXYZ"))
    digits = np.asarray(list("0123456789"))
    ids: dict[str, None] = {}
    while len(ids) < n_items:
        if rng.random() < 0.8:
            ids["B0DM" + "".join(rng.choice(letters, 6))] = None
        else:
            ids["00" + "".join(rng.choice(digits, 7)) + str(rng.choice([*digits, "X"]))] = None
    return list(ids)


def _draw_faults(n_items: int, rng: np.random.Generator) -> _Faults:
    """Different items for every fault, so that each can be seen alone."""
    n_missing = max(1, round(MISSING_SHARE * n_items))
    order = rng.permutation(n_items).tolist()
    kinds = ("image", "text", "audio")
    corrupt = {kind: order.pop() for kind in kinds}
    missing = {kind: frozenset(order.pop() for _ in range(n_missing)) for kind in kinds}
    return _Faults(missing, corrupt)


def _write_interactions(path: Path, item_ids: list[str], n_users: int, picks: Picks) -> None:
    width = max(4, len(str(n_users)))
    lines = ["user_id\titem_id\trating\ttimestamp"]
    columns = (picks.user_idx, picks.item_idx, picks.rating, picks.timestamp)
    for user, item, rating, time in zip(*(column.tolist() for column in columns), strict=True):
        lines.append(f"u{user:0{width}d}\t{item_ids[item]}\t{rating}\t{time}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def _describe(
    folder: Path, item_ids: list[str], parameters: dict[str, int], picks: Picks, faults: _Faults
) -> dict[str, Any]:
    n_picks = len(picks.user_idx)
    counts = {
        "items": parameters["items"],
        "users": parameters["users"],
        "interactions": n_picks,
        "items_with_interactions": len(np.unique(picks.item_idx)),
        "density": n_picks / (parameters["items"] * parameters["users"]),
    }
    return {
        "name": "demo",
        "synthetic": True,
        "source": "Synthetic: generated on this machine by `mmx demo`. No real products, people or "
        "purchases are in it, and results on it say nothing about results on real data.",
        "licence": "CC0-1.0: no rights reserved.",
        "counts": counts,
        "generator": {
            "tool": GENERATOR,
            "parameters": parameters,
            "versions": {
                name: version(distribution)
                for name, distribution in (("mmx", "mmx-mmbench"), ("numpy",) * 2, ("pillow",) * 2)
            },
        },
        "without": {kind: len(missing) for kind, missing in faults.missing.items()},
        "corrupt": {
            kind: {"item_id": item_ids[faults.corrupt[kind]], "how": how}
            for kind, how in (
                ("image", "JPEG file cut after a third"),
                ("text", "title and description in items.tsv hold bytes that are not UTF-8"),
                ("audio", "WAV file without a format"),
            )
        },
        "files": {
            "items.tsv": _digest([folder / "items.tsv"], folder),
            "interactions.tsv": _digest([folder / "interactions.tsv"], folder),
            "images": _digest((folder / "images").iterdir(), folder),
            "audio": _digest((folder / "audio").iterdir(), folder),
        },
    }


def _digest(paths: Iterable[Path], root: Path) -> dict[str, Any]:
    """SHA-256 of one file, or of the `sha256sum` listing of several, sorted by name."""
    found = sorted(paths)
    contents = [path.read_bytes() for path in found]
    sums = [hashlib.sha256(content).hexdigest() for content in contents]
    size = sum(len(content) for content in contents)
    if len(found) == 1 and found[0].parent == root:
        return {"sha256": sums[0], "bytes": size}
    names = (path.relative_to(root) for path in found)
    listing = "".join(f"{digest}  {name}\n" for digest, name in zip(sums, names, strict=True))
    digest = hashlib.sha256(listing.encode()).hexdigest()
    return {"files": len(found), "sha256": digest, "bytes": size}
