"""Networks of transformers, loaded by whichever library, held against their weights and tokenizer.

transformers gives what a folder's weights lack random values, and leaves out what has no place in
the network. Here both are errors, so that no set holds the vectors of another network than the one
that its provenance names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from mmbase.process import out_of_memory
from mmx.encoders.base import plain_reason, require
from mmx.encoders.weights.checkpoints import strays
from mmx.encoders.weights.hub import ModelFolder, without_bar
from mmx.errors import EncoderError, ToolError

_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_POSITIONS = ("position_embeddings", "position_embedding", "embed_positions", "wpe")


class Loaded(NamedTuple):
    """A network, and transformers' report of loading it."""

    network: Any
    told: dict[str, Any]


@contextmanager
def watched() -> Iterator[list[Loaded]]:
    """Give the list of the networks that transformers loads inside the block.

    Another library keeps to itself what transformers told it, so its calls are intercepted. The
    table that transformers prints of names that don't fit is left out: `refuse_unlike` says it.
    """
    base, logging = require("transformers").PreTrainedModel, require("transformers.utils.logging")
    original, loudness = base.__dict__["from_pretrained"], logging.get_verbosity()
    seen: list[Loaded] = []

    def from_pretrained(
        cls: Any, /, *args: Any, output_loading_info: bool = False, **options: Any
    ) -> Any:
        # Its own error for tensors of other shapes does not name them.
        options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        loaded = Loaded(*original.__get__(None, cls)(*args, **options))
        seen.append(loaded)
        return loaded if output_loading_info else loaded.network

    base.from_pretrained = classmethod(from_pretrained)
    logging.set_verbosity_error()
    try:
        with without_bar():
            yield seen
    finally:
        base.from_pretrained = original
        logging.set_verbosity(loudness)


def load_model(library: Any, folder: ModelFolder) -> Any:
    """Build the transformers model of a folder and load its weights.

    Raises:
        EncoderError: An adapter lies beside the weights, or they are not those of the network.
    """
    refuse_adapter(folder, folder.path)
    with watched() as seen:
        network = library.AutoModel.from_pretrained(
            str(folder.path), local_files_only=True, trust_remote_code=False
        )
    for loaded in seen:
        refuse_unlike(folder, loaded)
    return network


def refuse_adapter(folder: ModelFolder, *parts: Path) -> None:
    """Refuse an adapter beside a model, which would have to be applied to the weights.

    Raises:
        EncoderError: One of the model's folders `parts` holds one.
    """
    found = [part / name for part in parts for name in _ADAPTERS if (part / name).is_file()]
    if found:
        raise EncoderError(
            f"{folder.label}: holds an adapter ({found[0].name}), which is not applied to the "
            "weights here; merge it with peft (model.merge_and_unload().save_pretrained(FOLDER)) "
            "and name that folder, or take the adapter's files away for the model without it."
        )


def refuse_unlike(folder: ModelFolder, loaded: Loaded, *, pooler: bool = False) -> None:
    """Refuse a network that doesn't run on the weights of its folder.

    Tensors of heads that were cut off are no part of the network and may be left over.

    Args:
        folder: For the message.
        loaded: The network, and what transformers says about loading it.
        pooler: Whether the output of BERT's pooler is used.

    Raises:
        EncoderError: The weights lack tensors of the network, have some of another shape, hold
            further ones of the parts that it has, or belong to a class of their own whose code
            comes with the model.
    """
    network, told = loaded
    prefix = f"{network.base_model_prefix}."
    absent = sorted(n for n in told["missing_keys"] if pooler or ".pooler." not in f".{n}")
    left = sorted(told["unexpected_keys"])
    if (needed := _own_class(network.config)) not in (None, type(network).__name__):
        raise EncoderError(
            f"{folder.label}: is a {needed}, whose code comes with the model; no such code is run, "
            f"and {type(network).__name__}, which transformers has, is not the same"
        )
    if absent:
        called = next((name for name in left if name.endswith(f".{absent[0]}")), None)
        cause = f"the file has {called}" if called else "is the download complete?"
        raise EncoderError(
            f"{folder.label}: the weights lack {len(absent)} tensors, e.g. {absent[0]}; {cause}"
        )
    if unlike := sorted(told["mismatched_keys"], key=str):
        name, given, expected = unlike[0]
        raise EncoderError(
            f"{folder.label}: {len(unlike)} tensors of the weights have another shape than "
            f"config.json gives them, e.g. {name}: {tuple(given)} (expected {tuple(expected)}); "
            "they are of different models"
        )
    own = {name for name, _ in (*network.named_parameters(), *network.named_buffers())}
    if further := strays((name.removeprefix(prefix) for name in left), known=own, used=own):
        raise EncoderError(
            f"{folder.label}: the weights hold {len(further)} tensors that "
            f"{type(network).__name__} has no place for, e.g. {further[0]}; they are of another "
            "architecture"
        )


def refuse_foreign_tokens(folder: ModelFolder, network: Any, tokenizer: Any) -> None:
    """Refuse a tokenizer with tokens that the network has no vectors for.

    Raises:
        EncoderError: It is the tokenizer of another model.
    """
    try:
        n_tokens = len(_text_tower(network).get_input_embeddings().weight)
        largest = max(tokenizer.get_vocab().values())
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return  # characters, hashes: there is no table to look into
    if largest >= n_tokens:
        raise EncoderError(
            f"{folder.label}: the tokenizer has tokens up to number {largest}, and the network "
            f"knows {n_tokens} (0 to {n_tokens - 1}); tokenizer and weights are of different models"
        )


@contextmanager
def probing(folder: ModelFolder) -> Iterator[None]:
    """Refuse a model that fails in the block, on a sample: then it fails on everything.

    Raises:
        EncoderError: The parts of the model don't fit each other.
    """
    try:
        yield
    except ToolError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        raise EncoderError(
            f"{folder.label}: the model fails on a sample ({type(error).__name__}: "
            f"{plain_reason(error)}); its weights, configuration and processor don't fit each other"
        ) from error


def n_positions(network: Any) -> int | None:
    """Return the longest text in tokens that a network has positions for; None without a table.

    Tables that mark the padding count from behind its index, those of BART from behind `offset`.
    """
    longest = []
    for name, table in _text_tower(network).named_modules():
        if name.rpartition(".")[2] in _POSITIONS and hasattr(table, "num_embeddings"):
            padding = getattr(table, "padding_idx", None)
            first = getattr(table, "offset", 0) if padding is None else padding + 1
            longest.append(int(table.num_embeddings) - int(first))
    return min(longest, default=None)


def _text_tower(network: Any) -> Any:
    return getattr(network, "text_model", network)


def _own_class(config: Any) -> str | None:
    """The class that a configuration loads from code that comes with the model."""
    own = getattr(config, "auto_map", None)
    named = own.get("AutoModel") if isinstance(own, dict) else None
    return str(named).rpartition(".")[2] if named else None
