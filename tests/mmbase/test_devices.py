"""What `auto` takes, and names that no device has."""

from __future__ import annotations

import pytest
import torch

from mmbase.errors import UsageError
from mmbase.process import resolve_device


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert [resolve_device("cpu"), resolve_device("auto")] == ["cpu", "cpu"]
    for device in ("cuda", "cuda:1", "mps"):
        with pytest.raises(UsageError, match=f"--device {device}: not on this machine"):
            resolve_device(device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "ones", lambda size, device: torch.zeros(size))
    assert [resolve_device("auto"), resolve_device("cuda:1")] == ["cuda", "cuda:1"]
    with pytest.raises(UsageError):
        resolve_device("cuda:2")
    for device in ("gpu", "cuda:one", "cuda:-1", "mps:0", ""):
        with pytest.raises(UsageError, match=f"--device {device}: no such device"):
            resolve_device(device)


@pytest.mark.parametrize(
    ("reason", "automatic"),
    [
        ("no kernel image is available for execution on the device", "cpu"),
        ("device(s) is/are busy", None),
    ],
)
def test_a_gpu_that_does_not_compute_is_found_out(
    monkeypatch: pytest.MonkeyPatch, reason: str, automatic: str | None
) -> None:
    def fail(*shape: int, device: str) -> None:
        raise torch.AcceleratorError(f"CUDA error: {reason}\nCUDA kernel errors might be …")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "ones", fail)
    with pytest.raises(
        UsageError,
        match=r"--device cuda: it does not compute \(CUDA error: .{0,60}\); --device cpu",
    ):
        resolve_device("cuda")
    if automatic:
        assert resolve_device("auto") == automatic
    else:  # it would be silently slow
        with pytest.raises(UsageError, match="--device cpu does"):
            resolve_device("auto")
