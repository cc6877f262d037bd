"""The device that computes: what `auto` takes, and whether a named device works here."""

from __future__ import annotations

from collections.abc import Sequence

from mmbase.errors import UsageError


def resolve_device(device: str, automatic: Sequence[str] = ("cuda", "mps")) -> str:
    """Return the name of a device that computes, for `auto`, cpu, cuda, cuda:N or mps.

    `auto` takes the first of the GPU kinds `automatic` that is here; else, or if torch has no code
    for it, the CPU. A device that does not exist or does not compute raises `UsageError`.
    """
    if device == "cpu":
        return device
    kind, _, index = device.partition(":")
    known = device in ("auto", "mps") or kind == "cuda"
    if not (known and (index or "0").isdecimal()):
        choices = "auto, cpu, cuda, cuda:0, ... or mps"
        raise UsageError(f"--device {device}: no such device; choose {choices}")
    import torch

    here = {
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }
    if kind == "auto":
        device = next((name for name in automatic if here[name]), "cpu")
    elif here[kind] <= int(index or 0):
        found = f"{here[kind]} {kind} devices found"
        raise UsageError(f"--device {device}: not on this machine ({found}); try --device auto")
    try:
        torch.ones(1, device=device).item()  # a device that is listed may still refuse to compute
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        if kind == "auto" and "no kernel image" in reason:
            return "cpu"
        what = f"--device {device}: it does not compute ({reason}); --device cpu does"
        raise UsageError(what) from error
    return device
