"""`mmx finetune`: an encoder adapted to a catalogue."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from mmbase.cli import (
    PATH,
    Command,
    echo_json,
    given,
    json_option,
    options_of,
    progress,
    quiet_option,
)
from mmx.commands.names import encoder_names
from mmx.config import RunConfig, SetConfig, from_options
from mmx.errors import DataError, UsageError

_MODALITIES = click.Choice(["visual", "textual"])


@click.command(cls=Command)
@click.option("--modality", type=_MODALITIES, required=True, help="Kind of content to encode.")
@click.option("--split", required=True, metavar="NAME", help="Only its training part is read.")
@click.option(
    "--out", "target", type=PATH, required=True, metavar="PATH",
    help="File (.safetensors) or, for texts, folder to write.",
)  # fmt: skip
@click.option("--epochs", type=click.IntRange(min=1), default=3, help="Passes over the users.")
@click.option("--batch-size", type=click.IntRange(min=2), default=32, help="Item pairs per step.")
@click.option("--lr", type=float, default=1e-5, help="AdamW's step size.")
@click.option("--temperature", type=float, default=0.07, help="Divisor of the cosines.")
@options_of(
    SetConfig,
    RunConfig,
    only=("model", "data", "weights", "layer", "pooling", "text_columns", "seed", "device",
          "offline"),
    model={"metavar": "NAME", "required": True, "shell_complete": encoder_names,
           "help": "torchvision or sentence-transformers model."},
    data={"metavar": "DIR", "required": True, "shown": None},
    weights={"metavar": "W"},
    layer={"metavar": "NAME", "help": "Last layer to train.  [default: the encoder's]"},
    pooling={"metavar": "NAME"},
    text_columns={"metavar": "A,B"},
    seed={"metavar": "N", "help": "Seed of pairs, batches and random weights."},
    device={"metavar": "D"},
)  # fmt: skip
@json_option
@quiet_option
def finetune(
    *, modality: str, split: str, target: Path, as_json: bool, quiet: bool, **options: Any
) -> None:
    """Train an encoder so that items which the same users took come close, and save a checkpoint.

    Positives are pairs of items of one user's training history, negatives the other items of the
    batch. The checkpoint says what it was made of, and mmx extract takes it like any other: with
    --weights for pictures, as --model for texts.

    \b
    EXAMPLES
      mmx finetune --modality visual --model resnet18 --data mine --split loo --out shop.safetensors
      mmx extract --modality visual --model resnet18 --weights shop.safetensors --data mine
      mmx finetune --modality textual --model all-MiniLM-L6-v2 --data mine --split loo --out mine-st
      mmx extract --modality textual --model mine-st --data mine
    """
    from mmbase.catalogue.files import file_contents
    from mmbase.catalogue.items import load_items
    from mmbase.choices import recall_texts
    from mmbase.process import StopRequest, resolve_device
    from mmx.catalogue.contents import text_contents
    from mmx.encoders import create
    from mmx.encoders.weights.checkpoints import file_sha256
    from mmx.finetuning import Trainable, Training, histories, training_part
    from mmx.finetuning import finetune as train

    visual = modality == "visual"
    if visual and target.suffix != ".safetensors":
        raise UsageError(f"--out {target}: expected a file name that ends in .safetensors")
    if target.exists():
        raise UsageError(f"{target}: exists already; choose another --out, or remove it")
    if visual and options["text_columns"] is not None:
        raise UsageError("--text-columns is about texts (got --modality visual)")
    run = from_options(RunConfig, given(RunConfig, options))
    config = from_options(SetConfig, {"modality": modality, **given(SetConfig, options)})
    part = training_part(run.data, split)
    items = load_items(run.data)
    users = histories(part, items)
    contents = (
        file_contents(items, modality)
        if visual
        else text_contents(items, config.text_columns, known=recall_texts(run.data, "items"))
    )
    encoder = create(
        config.model,
        modality=modality,
        layer=config.layer,
        pooling=config.pooling,
        weights=config.weights,
        device=resolve_device(run.device),
        offline=run.offline,
        seed=run.seed,
    )
    if not isinstance(encoder, Trainable):
        raise UsageError(
            f"{config.model}: this family cannot be fine-tuned; use a torchvision or "
            "sentence-transformers model"
        )
    if encoder.ragged:
        raise UsageError(f"--pooling {config.pooling}: fine-tuning needs one vector per item")
    names = ("epochs", "batch_size", "lr", "temperature")
    training = Training(**{name: options[name] for name in names}, seed=run.seed)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--out {target}: its folder cannot be made ({error.strerror})") from error
    if not os.access(target.parent, os.W_OK):  # found target before the training, not after it
        raise DataError(f"--out {target}: {target.parent} cannot be written to")
    reporter = progress(quiet=quiet)
    with StopRequest() as request:
        for note in (*items.notes, *contents.notes):
            reporter.note(note)
        losses = train(
            encoder, contents, users, training, progress=reporter, stop=lambda: request.requested
        )
        encoder.save(
            target,
            {"split": split, "train_sha256": file_sha256(part), **asdict(training), "loss": losses},
        )
    if as_json:
        document = {"path": str(target), "users": len(users), "loss": losses}
        echo_json(document, "mmx.finetuning 1.0")
    else:
        click.echo(target.as_posix())
