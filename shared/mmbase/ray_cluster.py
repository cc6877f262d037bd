"""A Ray cluster to work on: one of this machine's processors, or one that runs already.

A cluster of this machine has no dashboard, sends no usage statistics, lets nobody in without its
password and ends with the program, however that ends: its processes die with the one that started
them, and what a killed one leaves in the folder for temporary files is removed by the next.
"""

from __future__ import annotations

import atexit
import importlib
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from mmbase.errors import ToolError, UsageError, install_extra
from mmbase.process import available_cpus, is_running

LOCAL_STORE_BYTES = 256 << 20
"""Object store of a cluster of this machine: what is under way between processes, and no more."""

PORT = 6379
"""Of a cluster's head, unless the address says another one."""

_PREFIX = "mmx-ray-"
_REACH_S = 5.0
_own_folder: Path | None = None  # of the cluster that this process has started


def connect(address: str | None = None, *, store_bytes: int = LOCAL_STORE_BYTES) -> Any:
    """Return the module `ray`, connected; a connection that is there is used as it is.

    Call it from the main thread: a cluster of this machine ends with the thread that started it.

    Args:
        address: `auto`: the cluster that this machine belongs to; HOST or HOST:PORT: the one with
            that head; None: processors of this machine.
        store_bytes: Memory of the object store of a cluster of this machine.

    Raises:
        UsageError: Ray's client protocol, which this does not speak.
        ToolError: Ray is not installed, no cluster is there, or one of other versions.
    """
    global _own_folder
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # What Ray is going to do with this variable it announces at every start.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray's workers would give way to any other program.
    os.environ.setdefault("RAY_worker_niceness", "0")
    if address is None and not {"ray", "RAY_AUTH_MODE"} & {*sys.modules, *os.environ}:
        # A password of this process, which Ray reads once: else it writes one into the user's home.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise ToolError(
            f"--engine ray needs Ray, which cannot be imported ({error}); run: "
            f"{install_extra('ray')}"
        ) from error
    if ray.is_initialized():
        return ray
    if address is not None:
        address = reachable(address)
    atexit.register(disconnect)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address is None:
        _own_folder = _new_folder()
        options |= {
            "num_cpus": available_cpus(),
            "include_dashboard": False,
            "object_store_memory": store_bytes,
            "_temp_dir": str(_own_folder),
            "address": "local",
        }
    else:
        options["address"] = address
    previous = _handlers()
    try:
        ray.init(**options)
    except Exception as error:
        disconnect()
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if address is None:
            raise ToolError(f"--engine ray: Ray does not start here ({reason})") from error
        raise ToolError(
            f"--address {address}: no Ray cluster can be used there ({reason}); `ray status` tells "
            "whether one runs"
        ) from error
    finally:
        for number, handler in previous.items():  # Ray sets handlers of its own
            signal.signal(number, handler)
    return ray


def disconnect() -> None:
    """Leave the cluster; one that this process has started ends, and leaves nothing."""
    global _own_folder
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        ray.shutdown()
    folder, _own_folder = _own_folder, None
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _handlers() -> dict[int, Any]:
    if threading.current_thread() is not threading.main_thread():
        return {}
    found = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    return {number: handler for number, handler in found.items() if handler is not None}


def reachable(address: str) -> str:
    """Return the address of a cluster's head, HOST:PORT, where something listens.

    Raises:
        UsageError: It is one of Ray's client protocol.
        ToolError: Nothing listens there.
    """
    if "://" in address:
        raise UsageError(
            f"--address {address}: give auto or HOST[:PORT] of the cluster's head, and the command "
            "on a machine of the cluster"
        )
    if address == "auto":
        return _recorded()
    host, _, port = address.rpartition(":") if ":" in address else (address, "", str(PORT))
    if not host or not port.isdecimal():
        raise UsageError(f"--address {address}: expected auto or HOST[:PORT]")
    try:
        socket.create_connection((host, int(port)), timeout=_REACH_S).close()
    except (OSError, OverflowError) as error:
        raise ToolError(
            f"--address {address}: no Ray cluster answers at {host}, port {port} ({error}); "
            "`ray start --head` starts one, and without --address this machine's processors serve"
        ) from error
    return f"{host}:{port}"


def _recorded() -> str:
    """Return the address of the cluster that this machine belongs to, if it answers.

    Raises:
        ToolError: There is none, or what is on record is gone.
    """
    services: Any = importlib.import_module("ray._private.services")
    found = os.environ.get("RAY_ADDRESS", "")
    if not found and not hasattr(services, "find_bootstrap_address"):  # another release of Ray
        return "auto"
    # Ray itself would also take a cluster that another command has started for itself.
    found = found or services.find_bootstrap_address(None) or ""
    if not found:
        raise ToolError(
            "--address auto: this machine belongs to no Ray cluster; `ray start --head` starts "
            "one, and without --address this machine's processors serve"
        )
    return reachable(found)


def _new_folder() -> Path:
    """Return a folder of this process, after removing those of processes that are gone.

    It is directly in the folder for temporary files: the sockets in it must have short names.
    """
    user = os.getuid() if hasattr(os, "getuid") else "user"
    root = Path("/tmp") if Path("/tmp").is_dir() else Path(tempfile.gettempdir())
    prefix = f"{_PREFIX}{user}-"
    for old in root.glob(f"{prefix}*"):
        process = old.name.removeprefix(prefix)
        if process.isdecimal() and not is_running(int(process)):
            shutil.rmtree(old, ignore_errors=True)
    return root / f"{prefix}{os.getpid()}"
