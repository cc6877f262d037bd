"""The commands of mmx, each in a module of `mmx.commands` that is imported when it is called."""

from __future__ import annotations

from functools import partial

from mmbase.cli import Shell
from mmbase.version import version_option
from mmx import __version__

COMMANDS = {
    "extract": ("mmx.commands.extract:extract", "Compute the features of a dataset's items."),
    "models": ("mmx.commands.models:models", "List the encoders."),
    "demo": ("mmx.commands.demo:demo", "Generate the synthetic demo catalogue."),
    "doctor": ("mmx.commands.doctor:doctor", "Check this machine and a dataset before a long run."),
    "finetune": (
        "mmx.commands.finetune:finetune",
        "Adapt an encoder to a catalogue by its training interactions.",
    ),
    "fetch": (
        "mmx.commands.fetch:fetch",
        "Download a public collection and convert it to a dataset folder.",
    ),
    "fuse": ("mmx.commands.fuse:fuse", "Join several feature sets of the same items into one."),
    "store": ("mmx.commands.store:store", "List, check, import, export and compare feature sets."),
    "completion": (
        "mmx.commands.completion:completion",
        "Print the completion script for bash, zsh or fish.",
    ),
}


cli = Shell(
    "mmx",
    lazy=COMMANDS,
    saved="what is saved",
    saves_memory="a smaller --batch-size needs less, --device cpu none of a GPU's",
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    help="Extract visual, textual and audio features of items into HDF5 feature sets.",
    epilog="Start with: mmx extract --modality visual --model colour-hog",
)
cli.params.append(version_option("mmx", __version__))

main = partial(cli.main, prog_name="mmx")
