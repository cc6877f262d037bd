"""`--version`: the version, and what it was built from and runs on.

Everything is read from files, so that the answer comes at once: torch is not imported.
"""

from __future__ import annotations

import ast
import json
import platform
import subprocess
from importlib import metadata, util
from pathlib import Path

import click

UNKNOWN = "unknown"


def version_option(tool: str, version: str) -> click.Option:
    """Return the option `--version` of a tool."""

    def show(ctx: click.Context, parameter: click.Parameter, asked: bool) -> None:
        if asked and not ctx.resilient_parsing:
            click.echo(f"{tool}, version {version}")
            for name, value in facts().items():
                click.echo(f"{name:<13} {value}")
            ctx.exit()

    return click.Option(
        ["--version"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=show,
        help="Show the version, and what it runs on.",
    )


def facts() -> dict[str, str]:
    """Return the commit, Python, torch, GPUs and the version of the store's format, in words."""
    from mmstore.spec import FORMAT_VERSION

    return {
        "commit": commit(),
        "Python": f"{platform.python_version()}, {platform.system()} {platform.machine()}",
        "torch": torch_build(),
        "GPU": gpus(),
        "store format": str(FORMAT_VERSION),
    }


def commit() -> str:
    """Return the commit of the checkout, or the one that pip noted; why not where it is unknown."""
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").is_file():
        if not (checkout / ".git").exists():
            return f"{UNKNOWN}: this folder is no git checkout"
        asked = ["describe", "--always", "--exclude=*", "--dirty=, modified", "--abbrev=12"]
        try:
            done = subprocess.run(
                ["git", "-C", str(checkout), *asked],
                capture_output=True, text=True, check=True, timeout=5,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError):
            return f"{UNKNOWN}: git does not say"
        return done.stdout.strip()
    try:
        noted = json.loads(
            metadata.distribution("mmx-mmbench").read_text("direct_url.json") or "{}"
        )
        return str(noted["vcs_info"]["commit_id"])[:12]
    except (metadata.PackageNotFoundError, ValueError, KeyError, TypeError):
        return f"{UNKNOWN}: installed from a distribution file"


def torch_build() -> str:
    """Return the version of torch, and whether it was built for CUDA."""
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return "not installed"
    built = _assigned("cuda")
    if built is UNKNOWN:
        return version
    return f"{version}, built {f'for CUDA {built}' if built else 'without CUDA'}"


def _assigned(name: str) -> str | None:
    """Return what torch's own file of its build says, without running it."""
    found = util.find_spec("torch")
    try:
        text = (Path(str(found and found.origin)).parent / "version.py").read_text("utf-8")
        for node in ast.parse(text).body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
                if isinstance(target, ast.Name) and target.id == name:
                    value = ast.literal_eval(node.value)
                    return None if value is None else str(value)
    except (OSError, ValueError, SyntaxError):
        pass
    return UNKNOWN


def gpus(driver: Path = Path("/proc/driver/nvidia/gpus")) -> str:
    """Return the NVIDIA GPUs that the driver lists; other makes are for `mmx doctor` to find."""
    names = []
    for file in sorted(driver.glob("*/information")):
        try:
            lines = file.read_text("utf-8", errors="replace").splitlines()
        except OSError:
            continue
        names += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    if names:
        return ", ".join(names)
    if platform.system() != "Linux":
        return f"{UNKNOWN}; see `mmx doctor`"
    return "no NVIDIA driver here"
