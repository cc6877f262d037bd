"""The device that computes: what `auto` takes, and whether a named device works here."""

from __future__ import annotations

from collections.abc import Sequence

from mmbase.errors import UsageError


def resolve_device(device: str, automatic: Sequence[str] = ("cuda", "mps")) -> str:
    """Return the name of a device that computes, for `auto`, cpu, cuda, cuda:N or mps.

    Args:
        device: The requested name.
        automatic: GPU kinds that `auto` may take, best first; the CPU if none is here, or if it is
            so old that this torch has no code for it (torch warns of that).

    Raises:
        UsageError: There is no such device, or it does not compute.
    """
    if device == "cpu":
        return device
    kind, _, index = device.partition(":")
    if (
        kind not in ("auto", "cuda", "mps")
        or (kind != "cuda" and device != kind)
        or not (index or "0").isdecimal()
    ):
        raise UsageError(
            f"--device {device}: no such device; choose auto, cpu, cuda, cuda:0, ... or mps"
        )
    import torch

    here = {
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }
    if kind == "auto":
        device = next((name for name in automatic if here[name]), "cpu")
    elif here[kind] <= int(index or 0):
        raise UsageError(
            f"--device {device}: not on this machine ({here[kind]} {kind} devices found); --device "
            "auto takes what is there"
        )
    try:
        torch.ones(1, device=device).item()  # a device that is listed may still refuse to compute
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        if kind == "auto" and "no kernel image" in reason:
            return "cpu"
        raise UsageError(
            f"--device {device}: it does not compute ({reason}); --device cpu does"
        ) from error
    return device
