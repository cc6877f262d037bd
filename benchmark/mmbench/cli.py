"""The commands of mmbench, each in `mmbench.commands`, imported when it is called."""

from __future__ import annotations

from functools import partial

from mmbase import cli as shell
from mmbase.cli import Shell
from mmbase.process import tune_process
from mmbase.version import version_option
from mmbench import __version__

COMMANDS = {
    "train": (
        "mmbench.commands.train:train",
        "Train models and print their validation and test metrics.",
    ),
    "run": ("mmbench.commands.run:run", "Run recipes: datasets, models and seeds from a file."),
    "ask": ("mmbench.commands.ask:ask", "Answer a question by experiment: designs in, a page out."),
    "reproduce": (
        "mmbench.commands.reproduce:reproduce",
        "Repeat published studies and report ours beside theirs.",
    ),
    "tune": ("mmbench.commands.tune:tune", "Search settings on validation; score test once."),
    "estimate": (
        "mmbench.commands.estimate:estimate",
        "Estimate what training needs: weights, memory, device, time.",
    ),
    "evaluate": (
        "mmbench.commands.evaluate:evaluate",
        "Score a finished run, or lists made anywhere else.",
    ),
    "recommend": (
        "mmbench.commands.recommend:recommend",
        "Write a finished run's recommendations or embeddings.",
    ),
    "gallery": (
        "mmbench.commands.gallery:gallery",
        "Show lists with pictures, and items beside their neighbours.",
    ),
    "compare": (
        "mmbench.commands.compare:compare",
        "Rank models, with tests and intervals.",
    ),
    "report": (
        "mmbench.commands.report:report",
        "Write tables and plots as Markdown, HTML, LaTeX and CSV.",
    ),
    "data": ("mmbench.commands.data:data", "Split, filter, check, import and export datasets."),
    "models": ("mmbench.commands.registries:models", "List the models and their settings."),
    "metrics": ("mmbench.commands.registries:metrics", "List the metrics with formula and source."),
    "completion": (
        "mmbench.commands.completion:completion",
        "Print the completion script for bash, zsh or fish.",
    ),
}


cli = Shell(
    "mmbench",
    lazy=COMMANDS,
    prepare=tune_process,  # before a command imports torch
    saved="the last saved epoch",
    saves_memory="a smaller batch_size or fewer --jobs need less, --device cpu none of a GPU's",
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "show_default": True,
    },
    help="""Train and evaluate multimodal recommenders on feature stores.

    \b
    Examples:
      mmbench train --model vbpr                          # on data/demo, made on first use
      mmbench train --model vbpr --data my/catalogue --features visual=resnet50
      mmbench train --model vbpr,bpr-mf --seed 1,2,3      # mean and spread over seeds
      mmbench evaluate --recs lists.tsv --data my/catalogue
    """,
)
cli.params.append(version_option("mmbench", __version__))

run = partial(shell.run, cli, prog_name="mmbench")
main = partial(cli.main, prog_name="mmbench")
