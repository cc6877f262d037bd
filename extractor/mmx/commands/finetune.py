"""The command `mmx finetune`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import click

from mmx.commands.options import console, debug_option
from mmx.errors import DataError, UsageError

_PATH = click.Path(path_type=Path)


@click.command(short_help="Adapt an encoder to a catalogue by its training interactions.")
@click.option(
    "--modality", type=click.Choice(["visual", "textual"]), required=True, help="What is looked at."
)
@click.option(
    "--model", required=True, metavar="NAME", help="torchvision or sentence-transformers model."
)
@click.option("--data", type=_PATH, required=True, metavar="DIR", help="Dataset folder.")
@click.option(
    "--split",
    required=True,
    metavar="NAME",
    help="Its training part says who took what; no other part is opened.",
)
@click.option(
    "--out",
    type=_PATH,
    required=True,
    metavar="PATH",
    help="File (.safetensors) or, for texts, folder to write.",
)
@click.option(
    "--weights",
    default="default",
    show_default=True,
    metavar="W",
    help="Where to start, as in mmx extract.",
)
@click.option("--layer", metavar="NAME", help="Layer that is trained up to  [the encoder's].")
@click.option("--pooling", metavar="NAME", help="How several vectors become one  [the encoder's].")
@click.option("--text-columns", metavar="A,B", help="Text columns, as in mmx extract.")
@click.option(
    "--epochs",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Passes over the users.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=2),
    default=32,
    show_default=True,
    help="Pairs of items per step.",
)
@click.option("--lr", type=float, default=1e-5, show_default=True, help="AdamW's step size.")
@click.option(
    "--temperature", type=float, default=0.07, show_default=True, help="Cosines are divided by it."
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Of the pairs, batches and random weights.",
)
@click.option(
    "--device", default="auto", show_default=True, metavar="D", help="auto, cpu, cuda, cuda:0, mps."
)
@click.option("--offline", is_flag=True, help="Never open a connection.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Say only what went wrong.")
@debug_option
def finetune(
    modality: str,
    model: str,
    data: Path,
    split: str,
    out: Path,
    weights: str,
    layer: str | None,
    pooling: str | None,
    text_columns: str | None,
    epochs: int,
    batch_size: int,
    lr: float,
    temperature: float,
    seed: int,
    device: str,
    offline: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Train an encoder so that items which the same users took come close, and save a checkpoint.

    Positives are pairs of items of one user's training history, negatives the other items of the
    batch. The checkpoint says what it was made of, and mmx extract takes it like any other: with
    --weights for pictures, as --model for texts.

    \b
    EXAMPLES
      mmx finetune --modality visual --model resnet18 --data my/catalogue --split loo --out fashion.safetensors
      mmx extract --modality visual --model resnet18 --weights fashion.safetensors --data my/catalogue
      mmx finetune --modality textual --model all-MiniLM-L6-v2 --data my/catalogue --split loo --out minilm-mine
      mmx extract --modality textual --model minilm-mine --data my/catalogue
    """
    from mmbase.signals import StopRequest
    from mmx.catalogue.contents import file_contents, text_contents
    from mmx.catalogue.items import load_items
    from mmx.encoders import create
    from mmx.encoders.weights.checkpoints import file_sha256
    from mmx.extraction.plan import resolve_device
    from mmx.finetuning import Trainable, Training, histories, training_part
    from mmx.finetuning import finetune as train

    if modality == "visual" and out.suffix != ".safetensors":
        raise UsageError(f"--out {out}: expected a file name that ends in .safetensors")
    if out.exists():
        raise UsageError(f"{out}: exists already; choose another --out, or remove it")
    if modality == "visual" and text_columns is not None:
        raise UsageError("--text-columns is about texts (got --modality visual)")
    part = training_part(data, split)
    items = load_items(data)
    users = histories(part, items)
    columns = None if text_columns is None else [name.strip() for name in text_columns.split(",")]
    contents = (
        text_contents(items, columns) if modality == "textual" else file_contents(items, modality)
    )
    encoder = create(
        model, modality=modality, layer=layer, pooling=pooling, weights=weights, device=resolve_device(device), offline=offline,
        seed=seed,
    )  # fmt: skip
    if not isinstance(encoder, Trainable):
        raise UsageError(
            f"{model}: this family cannot be fine-tuned; use a torchvision or "
            "sentence-transformers model"
        )
    training = Training(epochs, batch_size, lr, temperature, seed)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--out {out}: its folder cannot be made ({error.strerror})") from error
    if not os.access(out.parent, os.W_OK):  # found out before the training, not after it
        raise DataError(f"--out {out}: {out.parent} cannot be written to")
    with console(quiet=quiet) as progress, StopRequest() as request:
        for note in (*items.notes, *contents.notes):
            progress.note(note)
        losses = train(
            encoder, contents, users, training, progress=progress, stop=lambda: request.requested
        )
        encoder.save(
            out,
            {"split": split, "train_sha256": file_sha256(part), **asdict(training), "loss": losses},
        )
    if as_json:
        click.echo(json.dumps({"path": str(out), "users": len(users), "loss": losses}))
    else:
        click.echo(out.as_posix())
