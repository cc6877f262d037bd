"""Feature sets from raw contents: plan, build and fit the encoders, compute, finish the files."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from mmbase import gemm
from mmbase.extraction_cost import ExtractionCost, write_cost
from mmbase.progress import Progress, Silent
from mmstore import ProvenanceMismatch, Status
from mmstore.reader import FeatureSet
from mmstore.writer import FeatureSetWriter
from mmx.config import RunConfig, SetConfig
from mmx.encoders import Encoder, create
from mmx.encoders.compute import other_linear_kernel
from mmx.errors import UsageError
from mmx.extraction import pipeline, remote
from mmx.extraction.executors import Executor, LocalExecutor
from mmx.extraction.extending import FOLDER, GROWS, Extension, discard_shard, find_extension
from mmx.extraction.multipart import Several
from mmx.extraction.pipeline import SetJob
from mmx.extraction.plan import Plan, batch_size_of, has_cuda, make_plan
from mmx.extraction.shards import discard_shards
from mmx.extraction.summary import Stages, Summary


def extract(
    run: RunConfig,
    config: SetConfig,
    *,
    progress: Progress | None = None,
    build: Callable[..., Encoder] = create,
    executor: Executor | None = None,
    taken: Collection[Path] = (),
) -> Summary:
    """Make one feature set, continue it, or find it complete.

    Args:
        run: Dataset, store and how to go about it.
        config: Encoder and input.
        progress: Progress reporter.
        build: Builds the encoder; `mmx.encoders.create` unless a program brings its own.
        executor: Computes the vectors; by default as `executor_of` says.
        taken: Files of other sets of the same run, which `run.restart` must not replace either.

    Raises:
        ToolError: The set could not be made. What was computed is kept, and the same call goes on
            from there.
        mmstore.StoreError: The file could not be written, or one of another plan is in the way.
        Interrupted: SIGINT or SIGTERM; what was computed is kept.
    """
    return extract_together(
        run, (config,), progress=progress, build=build, executor=executor, taken=taken
    )[0]


def extract_together(
    run: RunConfig,
    configs: Sequence[SetConfig],
    *,
    progress: Progress | None = None,
    build: Callable[..., Encoder] = create,
    executor: Executor | None = None,
    taken: Collection[Path] = (),
) -> list[Summary]:
    """Make several feature sets of the same contents in one pass that decodes every file once.

    The vectors are those of one set after the other. An error of one set ends all.

    `configs` are one group of `share_contents`; other arguments and errors are those of `extract`.
    """
    progress = progress or Silent()
    with remote.staged(run) as here:
        if here is not run:
            return extract_together(
                here, configs, progress=progress, build=build, executor=executor, taken=taken
            )
    if run.extend and len(configs) > 1:  # their new items may differ
        made: list[Summary] = []
        for config in configs:
            known = [*taken, *(summary.path for summary in made)]
            made += extract_together(
                run, (config,), progress=progress, build=build, executor=executor, taken=known
            )
        return made
    began = time.perf_counter()
    jobs: list[SetJob] = []
    extensions: list[Extension | None] = []
    with ExitStack() as stack:
        for config in configs:
            plan = jobs[0].plan.of(config) if jobs else make_plan(run, config, progress)
            stages = Stages()
            encoder = build_encoder(plan, build, stages)
            path = _path(plan, encoder)
            if path in taken or path in [job.writer.path for job in jobs]:
                raise UsageError(
                    f"{path}: another set of this run has that name; give one of them a name of "
                    "its own"
                )
            remote.adopt(path)
            progress.detail(
                f"{path}: {len(plan.items):,} items, {encoder.spec.dim} numbers each, batches of "
                f"{plan.batch_size}"
            )
            first = all(job.already_complete for job in jobs)
            extension = None
            if run.extend:
                extension = find_extension(path, plan, encoder, may_choose_kernel=first)
            if extension is not None:
                extension.announce(progress)
                plan, path = plan.take(extension.new), extension.shard
            if run.restart:
                discard_shards(path)
            writer = stack.enter_context(
                _writer(path, plan, encoder, progress, may_choose_kernel=first)
            )
            others: tuple[Encoder, ...] = ()
            if not writer.finished:
                others = tuple(build_encoder(plan, build, stages, on) for on in plan.other_devices)
            jobs.append(SetJob(plan, encoder, writer, stages, others))
            jobs[-1].may_be_empty = extension is not None
            extensions.append(extension)
            if writer.finished and extension is None:
                discard_shard(path)
                _note_changes(jobs[-1], progress)
        unfinished = [job for job in jobs if not job.already_complete]
        if unfinished:
            pipeline.run(unfinished, executor or executor_of(run), progress)
        for job in unfinished:
            with job.stages.timed("write"):
                job.writer.finish()
                discard_shards(job.writer.path)
    for place, extension in enumerate(extensions):
        if extension is not None:
            jobs[place] = _joined(jobs[place], extension)
    elapsed_s = time.perf_counter() - began
    summaries = [job.summary(elapsed_s) for job in jobs]
    for summary in summaries:
        if not summary.already_complete:
            _write_cost(summary, len(unfinished))
    for summary in summaries:
        if summary.absent.count:
            progress.warn(f"{summary.modality}/{summary.name}: {summary.absent.as_text()}")
        remote.publish(summary.path)
    return summaries


def executor_of(run: RunConfig) -> Executor:
    """Return what computes the vectors of a run, as its settings say."""
    if run.engine == "ray":
        from mmx.extraction.on_ray import RayExecutor

        return RayExecutor(run.address, run.workers)
    return LocalExecutor(run.workers, run.loading)


def _joined(job: SetJob, extension: Extension) -> SetJob:
    """The finished set of all items, after that of the new ones."""

    def opened(provenance: Mapping[str, Any], **options: Any) -> FeatureSetWriter:
        return _open_writer(extension.path, extension.plan, job.encoder, provenance, **options)

    with job.stages.timed("write"):
        writer = extension.join(opened)
    return job.of_all(extension.plan, writer, extension.new)


def _write_cost(summary: Summary, n_sets: int) -> None:
    """Record what a finished set cost; a store where that can't be written does without."""
    cost = ExtractionCost(
        content_digest=summary.digest,
        items=summary.counts.total,
        measured=summary.stages.n_items,
        seconds=round(summary.elapsed_s, 3),
        sets=n_sets,
        device=summary.stages.device,
    )
    with suppress(OSError):
        write_cost(summary.path, cost)


def share_contents(run: RunConfig, configs: Sequence[SetConfig]) -> list[list[SetConfig]]:
    """Group sets that look at the same pictures or sounds in batches of the same size.

    A text costs nothing to read, so sets of texts stay alone, and sets that are extended may lack
    different items. Groups come in the order of their first sets.
    """
    groups: dict[tuple[object, ...], list[SetConfig]] = {}
    for place, config in enumerate(configs):
        key: tuple[object, ...] = (place,)
        if config.modality != "textual" and not run.extend:
            columns = (config.path_column, config.several, config.path_separator, config.background)
            key = (config.modality, *columns, batch_size_of(run, config))
        groups.setdefault(key, []).append(config)
    return list(groups.values())


def build_encoder(
    plan: Plan, build: Callable[..., Encoder], stages: Stages, device: str | None = None
) -> Encoder:
    """Return the encoder of a plan, fitted if need be, on its first device or on another one.

    A machine without the GPUs of its Ray cluster builds on the processor what they will compute.
    """
    config, run = plan.config, plan.run
    there = device or plan.device
    here = "cpu" if run.engine == "ray" and there == "cuda" and not has_cuda() else there
    encoder = build(
        config.model,
        modality=config.modality,
        layer=config.layer,
        pooling=config.pooling,
        weights=config.weights,
        device=here,
        precision=config.precision,
        offline=run.offline,
        seed=run.seed,
        **({"decoder": config.decoder} if config.decoder != "pil" else {}),
    )
    in_pieces = config.long_texts in ("mean", "ragged")
    stages.long_items = "chunked" if in_pieces else "truncated"
    if config.several or config.long_texts != "truncate":
        ragged = "ragged" in (config.several, config.long_texts)
        encoder = Several(
            encoder, combine="ragged" if ragged else "mean", long_texts=config.long_texts
        )
    if encoder.needs_fit:
        with stages.timed("fit"):
            encoder.fit(content for _, content in plan.all_contents())
    encoder.batch_size = plan.batch_size
    if here != there:
        encoder.device = there
    return encoder


def _path(plan: Plan, encoder: Encoder) -> Path:
    run, config = plan.run, plan.config
    name = "".join(
        (
            encoder.spec.name,
            "-interactions" if config.source == "interaction" else "",
            {"mean": "-several", "ragged": "-ragged"}.get(config.several or "", ""),
            f"-on-{config.background[1:]}" if config.background else "",
            {"mean": "-chunked", "ragged": "-chunks"}.get(config.long_texts, ""),
            f"-first{run.limit}" if run.limit else "",
        )
    )
    return run.store / config.modality / f"{config.name or name}.h5"


def _note_changes(job: SetJob, progress: Progress) -> None:
    """Warn where a complete set may be out of date: other versions, newer files, new contents.

    Texts need no look, because their digest is part of the plan.
    """
    writer, plan = job.writer, job.plan
    if writer.versions_differ:
        keys = ", ".join(key.removeprefix("provenance.") for key in writer.versions_differ)
        progress.warn(
            f"{writer.path}: complete, made with another {keys}; --restart computes it again"
        )
    if plan.config.modality == "textual":
        return
    finished_s = writer.path.stat().st_mtime
    with FeatureSet(writer.path) as features:
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
            f"{writer.path}: complete, but {newer:,} files are newer than the set and {appeared:,} "
            "items that had no file have one now; --restart computes it again"
        )


def _writer(
    path: Path, plan: Plan, encoder: Encoder, progress: Progress, *, may_choose_kernel: bool
) -> FeatureSetWriter:
    """Open the set. One that was begun with the other kernel of linear layers keeps that kernel.

    A set may have been begun on another processor, which must not keep it from being continued.
    Sets that are made together have one kernel: only the first unfinished one may choose it.
    """
    provenance, restart = plan.provenance(encoder), plan.run.restart
    try:
        return _open_writer(path, plan, encoder, provenance, restart=restart)
    except ProvenanceMismatch as error:
        if plan.run.extend and path.parent.name == FOLDER:
            progress.warn(f"{path}: new items have changed since it was begun; it is begun anew")
            return _open_writer(path, plan, encoder, provenance, restart=True)
        kernel = other_linear_kernel() if error.keys == ("provenance.linear",) else None
        if kernel is None and set(error.keys) <= GROWS:
            raise ProvenanceMismatch(
                f"{error}; if items were added to it, --extend computes these alone", error.keys
            ) from error
        if kernel is None:
            raise
        other = {**provenance, "linear": kernel}
        writer = _open_writer(path, plan, encoder, other, restart=restart)
        if not writer.finished:
            if not may_choose_kernel:
                writer.close()
                raise
            gemm.use(kernel)
        return writer


def _open_writer(
    path: Path, plan: Plan, encoder: Encoder, provenance: Mapping[str, Any], **options: Any
) -> FeatureSetWriter:
    retry = plan.run.retry_failed
    return FeatureSetWriter(
        path,
        modality=plan.config.modality,
        dim=encoder.spec.dim,
        **plan.items.keys(),
        layout="ragged" if encoder.ragged else "dense",
        dtype=plan.config.store_dtype,
        provenance=provenance,
        retry_failed=retry,
        retry_missing=retry,
        fsync=True,  # flushes are seconds apart: what is recorded as done survives a power cut
        **options,
    )
