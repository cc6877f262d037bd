"""`mmx fetch`: a public collection as a dataset folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from mmbase.cli import PATH, Command, echo_json, json_option, progress, quiet_option
from mmx.errors import UsageError


def _pairs(
    ctx: click.Context, parameter: click.Parameter, values: Sequence[str]
) -> dict[str, Path]:
    pairs = [value.partition("=") for value in values]
    if any(not (role and equals and path) for role, equals, path in pairs):
        raise click.BadParameter(
            "expected ROLE=PATH, e.g. reviews=reviews_Office_Products_5.json.gz", ctx, parameter
        )
    return {role: Path(path) for role, _, path in pairs}


@click.command(cls=Command)
@click.argument("name")
@click.option(
    "--out", metavar="DIR", type=PATH, help="Folder to make.  [default: data/COLLECTION-CATEGORY]"
)
@click.option("--mirror", metavar="DIR|URL", help="Source of the files, by their original names.")
@click.option(
    "--from-files",
    metavar="ROLE=PATH",
    multiple=True,
    callback=_pairs,
    help="File that is here already.",
)
@click.option(
    "--downloads",
    metavar="DIR",
    type=PATH,
    help="Folder of the downloads.  [default: beside --out]",
)
@click.option("--images", is_flag=True, help="Download the items' images, too.")
@click.option("--jobs", type=click.IntRange(1, 32), default=4, help="Connections for images.")
@json_option
@quiet_option
@click.pass_context
def fetch(
    ctx: click.Context,
    name: str,
    out: Path | None,
    mirror: str | None,
    from_files: dict[str, Path],
    downloads: Path | None,
    images: bool,
    jobs: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Download a public collection as a dataset folder: items, interactions and features.

    NAME is amazon-2014/, amazon-2018/ or amazon-2023/ and one of office, toys, beauty, sports,
    clothing, baby (not 2018), music. What has been downloaded is kept and checked; a broken
    download goes on where it stopped. Exit code 3: some images failed.

    \b
    EXAMPLES
      mmx fetch amazon-2014/office
      mmx fetch amazon-2014/clothing --out data/clothing --mirror /mnt/amazon
      mmx fetch amazon-2023/baby --images --jobs 8
      mmx fetch amazon-2014/office --from-files reviews=r.json.gz --from-files meta=m.json.gz \\
          --from-files features=f.b
    """
    from mmx.download.amazon import parse_name
    from mmx.download.fetch import FEATURE_SET, fetch_images
    from mmx.download.fetch import fetch as get

    if mirror is not None and "://" not in mirror and not Path(mirror).is_dir():
        raise UsageError(f"--mirror {mirror}: neither an address nor a folder")
    parse_name(name)
    target = out or Path("data") / name.replace("/", "-")
    reporter = progress(quiet=quiet)
    done = get(
        name,
        target,
        downloads=downloads or target.parent / "downloads",
        mirror=mirror,
        from_files=from_files,
        progress=reporter,
    )
    statuses = fetch_images(target, jobs=jobs, progress=reporter) if images else None
    for what, count in done.counts.items():
        reporter.note(f"{count:,} {what}")
    reporter.note(
        "go on with: mmx extract --modality textual --model "
        "sentence-transformers/stsb-roberta-large "
        f"--text-template lattice --data {target}"
    )
    if as_json:
        document = {
            "path": str(target),
            "counts": done.counts,
            "already": done.already,
            "images": statuses,
        }
        echo_json(document, "mmx.fetch 1.0")
    else:
        click.echo(target.as_posix())
        if (target / "features" / "visual" / f"{FEATURE_SET}.h5").is_file():
            click.echo((target / "features" / "visual" / f"{FEATURE_SET}.h5").as_posix())
    ctx.exit(3 if statuses and statuses["failed"] else 0)
