"""Feature sets from raw contents: plan, build the encoders, let them learn, run the loop, finish the files."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from mmbase import gemm
from mmbase.progress import Progress, Silent
from mmstore import ProvenanceMismatch, Status
from mmstore.reader import FeatureSet
from mmstore.writer import FeatureSetWriter
from mmx.catalogue.items import Items
from mmx.config import RunConfig, SetConfig
from mmx.encoders import Encoder, create
from mmx.encoders.compute import other_linear_kernel
from mmx.errors import UsageError
from mmx.extraction.encoder_stream import Lane
from mmx.extraction.multipart import Several
from mmx.extraction.pipeline import Loop
from mmx.extraction.plan import Plan, batch_size_of, make_plan
from mmx.extraction.summary import Counts, Stages, Summary

ERRORS_SHOWN = 5


def extract(
    run: RunConfig,
    config: SetConfig,
    *,
    progress: Progress | None = None,
    build: Callable[..., Encoder] = create,
    taken: Collection[Path] = (),
) -> Summary:
    """Makes one feature set, or goes on with it, or finds it complete.

    Args:
        run: Dataset, store and how to go about it.
        config: Encoder and input.
        progress: Who hears about it.
        build: Builds the encoder; `mmx.encoders.create` unless a program brings its own.
        taken: Files that other sets of the same run have become: none of them is replaced,
            `run.restart` or not.

    Raises:
        ToolError: The set could not be made. What was computed is kept, and the same call goes on
            from there.
        mmstore.StoreError: The file could not be written, or one of another plan is in the way.
        Interrupted: SIGINT or SIGTERM; what was computed is kept.
    """
    return extract_together(run, (config,), progress=progress, build=build, taken=taken)[0]


def extract_together(
    run: RunConfig,
    configs: Sequence[SetConfig],
    *,
    progress: Progress | None = None,
    build: Callable[..., Encoder] = create,
    taken: Collection[Path] = (),
) -> list[Summary]:
    """Makes several feature sets of the same contents in one pass: every file is read and decoded once.

    The vectors are those of one set after the other. Arguments and errors as of `extract`; what
    ends one set ends all.

    Args:
        run: Dataset, store and how to go about it.
        configs: Encoders of one group of `share_contents`.
        progress: Who hears about it.
        build: Builds each encoder.
        taken: See `extract`.

    Returns:
        A summary for each set, in the given order.
    """
    progress = progress or Silent()
    began = time.perf_counter()
    plans: list[Plan] = []
    lanes: list[Lane] = []
    writers: list[FeatureSetWriter] = []
    encoders: list[Encoder] = []
    all_stages: list[Stages] = []
    with ExitStack() as stack:
        for config in configs:
            plan = make_plan(run, config, progress) if not plans else plans[0].of(config)
            stages = Stages()
            encoder = _built(plan, build, stages)
            path = _path(plan, encoder)
            if path in taken or path in [writer.path for writer in writers]:
                raise UsageError(
                    f"{path}: another set of this run has that name; give one of them a name of "
                    "its own"
                )
            progress.detail(
                f"{path}: {len(plan.items):,} items, {encoder.spec.dim} numbers each, batches of "
                f"{plan.batch_size}"
            )
            writer = stack.enter_context(_writer(path, plan, encoder, alone=not lanes))
            if writer.finished:
                if writer.versions_differ:
                    keys = ", ".join(
                        key.removeprefix("provenance.") for key in writer.versions_differ
                    )
                    progress.warn(
                        f"{path}: complete, made with another {keys}; --restart computes it again"
                    )
                _say_what_changed(path, plan, progress)
            else:
                lanes.append(Lane(plan, encoder, writer, progress, stages))
            plans.append(plan)
            encoders.append(encoder)
            writers.append(writer)
            all_stages.append(stages)
        if lanes:
            Loop(plans[0], lanes, progress).go()
        for lane in lanes:
            with lane.stages.timed("write"):
                lane.writer.finish()
    unfinished = {id(lane.writer) for lane in lanes}
    return [
        _summary(plan, encoder, writer, stages, already=id(writer) not in unfinished, began=began)
        for plan, encoder, writer, stages in zip(plans, encoders, writers, all_stages, strict=True)
    ]


def share_contents(run: RunConfig, configs: Sequence[SetConfig]) -> list[list[SetConfig]]:
    """Groups of sets that look at the same pictures or sounds in batches of the same size, in the order of the first ones.

    A text costs nothing to read, so that sets of texts stay alone.
    """
    groups: dict[tuple[object, ...], list[SetConfig]] = {}
    for place, config in enumerate(configs):
        own: tuple[object, ...] = (
            config.modality,
            config.path_column,
            config.several,
            config.path_separator,
            batch_size_of(run, config),
        )
        groups.setdefault((place,) if config.modality == "textual" else own, []).append(config)
    return list(groups.values())


def _built(plan: Plan, build: Callable[..., Encoder], stages: Stages) -> Encoder:
    """The encoder of a plan, fitted if it has to be."""
    config, run = plan.config, plan.run
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
    stages.long_items = "chunked" if config.long_texts in ("mean", "ragged") else "truncated"
    combine = config.several or (
        config.long_texts if config.long_texts in ("mean", "ragged") else None
    )
    if combine or config.long_texts == "error":
        encoder = Several(
            encoder,
            combine="ragged" if combine == "ragged" else "mean",
            long_texts=config.long_texts,
        )
    if encoder.needs_fit:
        with stages.timed("fit"):
            encoder.fit(content for _, content in plan.all_contents())
    encoder.batch_size = plan.batch_size
    return encoder


def _path(plan: Plan, encoder: Encoder) -> Path:
    run, config = plan.run, plan.config
    parts = {"mean": "-several", "ragged": "-ragged"}.get(config.several or "", "")
    chunks = {"mean": "-chunked", "ragged": "-chunks"}.get(config.long_texts, "")
    source = "-interactions" if config.source == "interaction" else ""
    name = config.name or encoder.spec.name + source + parts + chunks + (
        f"-first{run.limit}" if run.limit else ""
    )
    return run.store / config.modality / f"{name}.h5"


def _summary(
    plan: Plan,
    encoder: Encoder,
    writer: FeatureSetWriter,
    stages: Stages,
    *,
    already: bool,
    began: float,
) -> Summary:
    counts = writer.counts()
    return Summary(
        path=writer.path,
        modality=plan.config.modality,
        name=writer.path.stem,
        dim=encoder.spec.dim,
        digest=writer.header.content_digest,
        already_complete=already,
        counts=Counts(counts[Status.OK], counts[Status.MISSING], counts[Status.CORRUPT]),
        stages=stages,
        elapsed_s=time.perf_counter() - began,
        errors=_first_errors(writer.path, plan.items),
    )


def _first_errors(path: Path, items: Items) -> tuple[tuple[str, str], ...]:
    """The first corrupt items of a finished set: id and reason."""
    with FeatureSet(path) as features:
        return tuple(
            (items.name_of(row), message) for row, message in features.errors()[:ERRORS_SHOWN]
        )


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
            missing[row] = False  # count an item once
        elif isinstance(content, Path):
            with suppress(OSError):  # it may vanish while we look
                newer += content.stat().st_mtime > finished_s
    if newer or appeared:
        progress.warn(
            f"{path}: complete, but {newer:,} files are newer than the set and {appeared:,} items "
            "that had no file "
            "have one now; --restart computes it again"
        )


def _writer(path: Path, plan: Plan, encoder: Encoder, *, alone: bool) -> FeatureSetWriter:
    """The set to write. One that was begun with the other kernel of linear layers goes on with that one.

    Which kernel is faster is measured, on a processor that may be another one or busy, and must not
    stand in the way of what is there. Sets that are made together have one kernel, so that an
    unfinished one may bring its own only if it is the first.
    """
    provenance = plan.provenance(encoder)
    try:
        return _open_writer(path, plan, encoder, provenance)
    except ProvenanceMismatch as error:
        kernel = other_linear_kernel() if error.keys == ("provenance.linear",) else None
        if kernel is None:
            raise
        writer = _open_writer(path, plan, encoder, {**provenance, "linear": kernel})
        if not writer.finished:
            if not alone:
                writer.close()
                raise
            gemm.use(kernel)
        return writer


def _open_writer(
    path: Path, plan: Plan, encoder: Encoder, provenance: Mapping[str, Any]
) -> FeatureSetWriter:
    return FeatureSetWriter(
        path,
        modality=plan.config.modality,
        dim=encoder.spec.dim,
        **plan.items.keys(),
        layout="ragged" if encoder.ragged else "dense",
        dtype=plan.config.store_dtype,
        provenance=provenance,
        restart=plan.run.restart,
        retry_failed=plan.run.retry_failed,
        retry_missing=plan.run.retry_failed,
        fsync=True,  # flushes are seconds apart: what is recorded as done survives a power cut, too
    )
