"""One feature set from raw contents: plan, build the encoder, let it learn, run the loop, finish the file."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mmstore import FeatureSet, FeatureSetWriter, Status
from mmx.config import RunConfig, SetConfig
from mmx.encoders import Encoder, create
from mmx.items import Items
from mmx.loop import Loop
from mmx.plan import Plan, make_plan
from mmx.progress import Progress, SilentProgress
from mmx.summary import Counts, Stages, Summary

ERRORS_SHOWN = 5


def extract(
    run: RunConfig,
    config: SetConfig,
    *,
    progress: Progress | None = None,
    build: Callable[..., Encoder] = create,
) -> Summary:
    """Makes one feature set, or goes on with it, or finds it complete.

    Args:
        run: Dataset, store and how to go about it.
        config: Encoder and input.
        progress: Who hears about it.
        build: Builds the encoder; `mmx.encoders.create` unless a program brings its own.

    Raises:
        MmxError: The set could not be made. What was computed is kept, and the same call goes on from there.
        mmstore.StoreError: The file could not be written, or one of another plan is in the way.
        Interrupted: SIGINT or SIGTERM; what was computed is kept.
    """
    progress = progress or SilentProgress()
    began = time.perf_counter()
    plan = make_plan(run, config, progress)
    encoder = build(
        config.model,
        modality=config.modality,
        layer=config.layer,
        pooling=config.pooling,
        weights=config.weights,
        device=plan.device,
        precision=config.precision,
        offline=run.offline,
        seed=run.seed,
    )
    encoder.batch_size = plan.batch_size
    stages = Stages()
    if encoder.needs_fit:
        with stages.timed("fit"):
            encoder.fit(content for _, content in plan.all_contents())
    name = config.name or encoder.spec.name + (f"-first{run.limit}" if run.limit else "")
    path = run.store / config.modality / f"{name}.h5"
    progress.detail(f"{path}: {len(plan.items):,} items, {encoder.spec.dim} numbers each, batches of {plan.batch_size}")
    with _open_writer(path, name, plan, encoder) as writer:
        already = writer.finished
        if not already:
            Loop(plan, encoder, writer, progress, stages).go()
            with stages.timed("write"):
                writer.finish()
    if already:
        _say_what_changed(path, plan, progress)
    counts = writer.counts()
    return Summary(
        path=path,
        modality=config.modality,
        name=name,
        dim=encoder.spec.dim,
        digest=writer.header.content_digest,
        already_complete=already,
        counts=Counts(counts[Status.OK], counts[Status.MISSING], counts[Status.CORRUPT]),
        stages=stages,
        elapsed_s=time.perf_counter() - began,
        errors=_first_errors(path, plan.items),
    )


def _first_errors(path: Path, items: Items) -> tuple[tuple[str, str], ...]:
    """The first corrupt items of a finished set: id and reason."""
    with FeatureSet(path) as features:
        return tuple((items.ids[row].as_py(), message) for row, message in features.errors()[:ERRORS_SHOWN])


def _say_what_changed(path: Path, plan: Plan, progress: Progress) -> None:
    """Notes files that are newer than a complete set, and contents that have appeared since: it may be out of date.

    Texts need no look, because their digest is part of the plan.
    """
    if plan.config.modality == "textual":
        return
    finished_s = path.stat().st_mtime
    with FeatureSet(path) as features:
        missing = features.status == Status.MISSING
    newer = appeared = 0
    for row, content in plan.all_contents():
        if missing[row]:
            appeared += 1
        elif isinstance(content, Path):
            with suppress(OSError):  # it may vanish while we look
                newer += content.stat().st_mtime > finished_s
    if newer or appeared:
        progress.warn(
            f"{path}: complete, but {newer:,} files are newer than the set and {appeared:,} items that had no file "
            "have one now; --restart computes it again"
        )


def _open_writer(path: Path, name: str, plan: Plan, encoder: Encoder) -> FeatureSetWriter:
    return FeatureSetWriter(
        path,
        modality=plan.config.modality,
        name=name,
        dim=encoder.spec.dim,
        ids=plan.items.id_array(),
        dtype=plan.config.store_dtype,
        provenance=plan.provenance(encoder),
        restart=plan.run.restart,
        retry_failed=plan.run.retry_failed,
    )
