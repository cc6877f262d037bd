"""A worker of a Ray cluster, and tasks that load for it; `mmx.extraction.on_ray` starts them."""

from __future__ import annotations

import pickle
import socket
from collections.abc import Sequence
from typing import Any, NamedTuple

import mmx
from mmbase import gemm
from mmbase.process import tune_process
from mmstore import StoreError
from mmx.encoders import Encoder, create
from mmx.encoders.base import versions
from mmx.errors import INSTALL_EXTRA, EncoderError, ToolError
from mmx.extraction.executors import LocalExecutor
from mmx.extraction.loading import Reading, load_or_leave, read
from mmx.extraction.plan import Plan
from mmx.extraction.processes import loaders_of, portable
from mmx.extraction.shards import Committed, Shard, commit
from mmx.extraction.window import ReadElsewhere

TRIES = 5
"""Workers or tasks that may be lost one after the other over the same work."""


class Order(NamedTuple):
    """What a worker needs to encode for one set.

    Attributes:
        plan: Of no item: settings, sizes and device.
        libraries: Versions on the machine that gives the order.
        provenance: What the encoder there says of itself.
        encoder: A reference to it; None: the worker builds its own.
    """

    plan: Plan
    libraries: dict[str, str]
    provenance: dict[str, Any]
    encoder: Any


class Worker:
    """A process of the cluster that encodes: an actor."""

    def __init__(self) -> None:
        tune_process(one_arena=True)
        self._encoders: list[Encoder] = []
        self._executor = LocalExecutor(1, "threads")

    def prepare(
        self, orders: Sequence[Order], version: str, kernel: str, loaders: int
    ) -> str | ToolError:
        """Get the encoders ready; return the name of this machine, or why they can't be had.

        Args:
            orders: Of the sets that share contents.
            version: Of mmx, on the machine that gives the orders.
            kernel: Of linear layers, as there; empty where that is of no account.
            loaders: Contents to load at a time on other processors; 0: this process loads.
        """
        host = socket.gethostname()
        try:
            _refuse_other_version(host, "mmx", mmx.__version__, version)
            if kernel:
                gemm.use(kernel)  # type: ignore[arg-type]
            for order in orders:
                self._encoders.append(_encoder_of(order, host))
            if loaders:
                elsewhere = _elsewhere(self._encoders, orders[0].plan.config.background)
                self._executor = LocalExecutor(loaders, "threads", elsewhere)
        except (ToolError, RuntimeError) as error:
            return error if isinstance(error, ToolError) else ToolError(f"{host}: {error}")
        return host

    def commit(self, shard: Shard) -> list[Committed] | ToolError:
        """Compute a shard; return what became of its parts, or why the run has to end."""
        try:
            return commit(shard, self._encoders, self._executor)
        except ToolError as error:
            return error
        except StoreError as error:
            return ToolError(f"{socket.gethostname()}: {error}")


def _encoder_of(order: Order, host: str) -> Encoder:
    """Return the encoder of an order, which is the one that was ordered."""
    from mmx.extraction.extract import build_encoder
    from mmx.extraction.summary import Stages

    here = versions(*order.libraries)
    for name, wanted in order.libraries.items():
        _refuse_other_version(host, name, here[name], wanted)
    if order.encoder is not None:
        import ray

        shipped: Encoder = ray.get(order.encoder)
        return shipped
    encoder = build_encoder(order.plan, create, Stages())
    if (found := encoder.spec.provenance()) != order.provenance:
        keys = [key for key, value in order.provenance.items() if found.get(key) != value]
        raise EncoderError(
            f"the worker on {host} has another {order.plan.config.model} ({', '.join(keys)} "
            "differ); all machines need the same weights and libraries"
        )
    return encoder


def _refuse_other_version(host: str, name: str, found: str, wanted: str) -> None:
    if found == "unknown" != wanted:
        raise EncoderError(
            f"the worker on {host} lacks {name} {wanted}; run there: {INSTALL_EXTRA}"
        )
    if found != wanted:
        raise EncoderError(
            f"the worker on {host} has {name} {found}, and this machine {wanted}; install the same "
            "versions on all machines (constraints.txt)"
        )


# ------------------------------------------------------------------------------------------------
# loading apart from encoding


def _elsewhere(encoders: Sequence[Encoder], background: str | None) -> ReadElsewhere | None:
    """Return what loads in tasks on the cluster's processors; None where encoders can't travel."""
    import ray

    loaders, _ = loaders_of(encoders)
    try:
        packed = portable(loaders, background)
    except ValueError:
        return None
    remote = ray.remote(num_cpus=1, max_retries=TRIES, scheduling_strategy="SPREAD")(_read)
    reference = ray.put(packed)

    def elsewhere(takes: Sequence[bool], contents: Sequence[Any]) -> Reading:
        reading: Reading = ray.get(remote.remote([reference], list(takes), list(contents)))
        return reading

    return elsewhere


_unpacked: dict[str, Any] = {}  # what this process loads with, by its reference


def _read(references: list[Any], takes: list[bool], contents: list[Any]) -> Reading:
    import ray

    (reference,) = references
    if reference.hex() not in _unpacked:
        _unpacked.clear()
        # Bytes of the worker that gave the task.
        _unpacked[reference.hex()] = pickle.loads(ray.get(reference))  # noqa: S301
    encoders, background = _unpacked[reference.hex()]
    takers = [one if wanted else None for one, wanted in zip(encoders, takes, strict=True)]
    return read(takers, contents, background, load_or_leave)
