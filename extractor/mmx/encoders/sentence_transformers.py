"""sentence-transformers: any model folder or hub id, through the library's own modules.

Only the loop is ours: texts are tokenised when they are loaded, many in one call, so that cut texts
can be counted and batches formed from texts of similar length; a batch is padded to its own longest
text.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmx.encoders.base import (
    Encoder,
    EncoderFamily,
    EncoderInfo,
    EncoderSpec,
    Request,
    checked_text,
    each_text,
    plain_reason,
    require,
    slug,
    versions,
)
from mmx.encoders.batching import pad_rows, usual_width
from mmx.encoders.compute import checked_device, fetched, forward_pass, prepared, stacked
from mmx.encoders.replaying import Replays
from mmx.encoders.weights import hub, loading
from mmx.encoders.weights.checkpoints import file_sha256, training_of
from mmx.errors import ContentError, EncoderError, UsageError

ORGANISATION = "sentence-transformers"  # where a bare name lives on the hub

# Listed; any other hub id or folder works too. (dimension, maximum tokens, pooling)
MODELS: dict[str, tuple[int, int | None, str]] = {
    "all-MiniLM-L6-v2": (384, 256, "mean"),
    "all-MiniLM-L12-v2": (384, 128, "mean"),
    "all-mpnet-base-v2": (768, 384, "mean"),
    "paraphrase-multilingual-MiniLM-L12-v2": (384, 128, "mean"),
    "sentence-t5-base": (768, None, "mean"),
    "BAAI/bge-base-en-v1.5": (768, None, "cls"),
    "BAAI/bge-m3": (1024, None, "cls"),
    "intfloat/e5-base-v2": (768, None, "mean"),
    "intfloat/multilingual-e5-base": (768, None, "mean"),
    "thenlper/gte-base": (768, None, "mean"),
}
LICENCES = {"all-MiniLM-L6-v2": "apache-2.0"}


_USUAL_TOKENS = 512
_AS_THE_LIBRARY: dict[str, Any] = {"truncation": "longest_first", "padding": False}


class SentenceEncoder(Encoder):
    """A sentence-transformers model; gives what its `encode` gives of one text at a time."""

    concurrent = True

    def __init__(self, request: Request) -> None:
        device = checked_device(request)
        hub.tokenise_in_callers()
        folder = hub.find_model(request, _default_id(request.model))
        if request.offline:
            hub.go_offline()
        library = require("sentence_transformers")
        damaged = require("safetensors").SafetensorError
        loading.refuse_adapter(folder, *folder.parts())
        with loading.watched() as networks:
            try:
                model = library.SentenceTransformer(
                    str(folder.path), device=str(device), local_files_only=True
                )
            except (*hub.NOT_A_MODEL, damaged) as error:
                reason = plain_reason(error)
                raise EncoderError(
                    f"{request.model}: {folder.label} is not a sentence-transformers model "
                    f"({reason})."
                ) from error
        _refuse_unfit(folder, model, networks)
        self._model = prepared(model.float(), device, request.precision)
        self._device = device
        self.device = str(device)
        self.replays = self._replays = Replays()
        self._prompt = _default_prompt(model)
        self._max_tokens = model.max_seq_length if isinstance(model.max_seq_length, int) else None
        # `preprocess` and this copy each use their tokenizer with one setting only: a fast
        # tokenizer whose settings change while another thread uses it fails.
        has_tokens = hasattr(model.tokenizer, "model_input_names")
        self._untruncated = copy.deepcopy(model.tokenizer) if has_tokens else None
        self._padded = self._untruncated is not None and _is_padded(self._preprocess("a"))
        self._rest: dict[str, Any] | None = None  # of the inputs, beside tokens; None: one by one
        self._encode_many: Any = None  # of the tokenizer in Rust, where that alone gives the same
        self._names: tuple[str, ...] = ()  # of the inputs
        self._ones, self._zeros = (fill(_USUAL_TOKENS, np.int64) for fill in (np.ones, np.zeros))
        self._settle()
        self.spec = self._describe(request, folder)

    def load(self, content: Path | str) -> dict[str, Any]:
        """Tokenise a text: one array per model input, and under `cut` whether it was too long."""
        text = checked_text(content)
        if not self._padded:
            return {"text": text, "length": len(text), "cut": False}
        (tokenised,) = self._tokenised([text])
        if isinstance(tokenised, ContentError):
            raise tokenised
        return tokenised

    def load_many(self, contents: Sequence[Path | str]) -> list[Any]:
        """Tokenise texts in one call; a `ContentError` in place of those without tokens."""
        if self._rest is None:
            return super().load_many(contents)
        return each_text(contents, self._tokenised)

    def _tokenised(self, texts: list[str]) -> list[dict[str, Any] | ContentError]:
        """Loaded texts, or a `ContentError` where a text has no tokens."""
        whole = [self._prompt + text for text in texts] if self._prompt else texts
        columns: Mapping[str, Any]
        if self._encode_many is not None:
            rest, columns = self._rest, self._columns(self._encode_many(whole))
        elif self._rest is not None:
            rest, columns = self._rest, self._model.tokenizer(whole, **_AS_THE_LIBRARY)
        else:
            (text,) = texts
            features = self._preprocess(text)
            columns = {name: value.numpy() for name, value in _tensors(features).items()}
            rest = {name: value for name, value in features.items() if name not in columns}
        loaded: list[dict[str, Any]] = []
        for row in zip(*columns.values(), strict=True):
            rows = {name: np.asarray(r, np.int64) for name, r in zip(columns, row, strict=True)}
            length = len(rows["input_ids"])
            loaded.append({"rows": rows, "rest": rest, "length": length, "cut": False})
        self._mark_cut(texts, loaded)
        return [one if one["length"] else ContentError("the text has no tokens") for one in loaded]

    def _columns(self, encodings: Sequence[Any]) -> dict[str, list[NDArray[np.int64]]]:
        """The inputs of texts that the tokenizer in Rust has encoded: arrays by name.

        All tokens of a single text that is not padded are its own, and of one type.
        """
        ids = [np.array(encoding.ids, np.int64) for encoding in encodings]
        longest = max(map(len, ids))
        if longest > len(self._ones):
            self._ones, self._zeros = np.ones(longest, np.int64), np.zeros(longest, np.int64)
        same = {"attention_mask": self._ones, "token_type_ids": self._zeros}
        return {
            name: ids if name == "input_ids" else [same[name][: len(row)] for row in ids]
            for name in self._names
        }

    def encode(self, batch: Sequence[dict[str, Any]]) -> NDArray[np.float32]:
        """Return sentence embeddings, (len(batch), dim), normalised where the model does so."""
        with forward_pass(self._device, self._precision):
            inputs = self._collate(batch)
            tensors = {name: x for name, x in inputs.items() if hasattr(x, "shape")}
            rest = {name: x for name, x in inputs.items() if name not in tensors}
            vectors = self._replays(
                lambda given: self._embedded({**rest, **given}),
                tensors,
                usual=self._is_usual(batch, tensors),
            )
            return fetched(vectors)

    def _is_usual(self, batch: Sequence[dict[str, Any]], tensors: Mapping[str, Any]) -> bool:
        """Whether a pass is like most others.

        Where nothing is padded, the network looks at the mask to choose another kernel.
        """
        if not self._padded or len(batch) != self.batch_size:
            return False
        shortest: int = min(item["length"] for item in batch)
        return shortest < int(tensors["input_ids"].shape[1])

    @property
    def network(self) -> Any:
        """The model, for fine-tuning."""
        return self._model

    def differentiable(self, batch: Sequence[dict[str, Any]]) -> Any:
        """Encode with gradients: a tensor."""
        return self._embedded(self._collate(batch))

    def _embedded(self, inputs: dict[str, Any]) -> Any:
        """The model's inputs to vectors, (n, dim)."""
        return self._model(inputs)["sentence_embedding"][:, : self._model.truncate_dim]

    def save(self, path: Path, training: Mapping[str, Any]) -> None:
        """Write a folder as the library saves it, with its origin, in one step."""
        partial = path.with_name(path.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        with hub.without_bar():
            self._model.save(str(partial), create_model_card=False)
        told = {"finetuned_from": self.spec.provenance(), "training": dict(training)}
        text = json.dumps(told, indent=2, sort_keys=True)
        (partial / "mmx.json").write_text(text + "\n", encoding="utf-8")
        partial.rename(path)

    def _collate(self, batch: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The model's inputs for loaded texts, padded to the longest.

        On a CUDA device to one of few widths, so that passes of one shape come again.
        """
        if not self._padded:
            features = self._model.preprocess([item["text"] for item in batch], prompt=self._prompt)
            moved = {n: v.to(self._device) for n, v in features.items() if hasattr(v, "to")}
            inputs: dict[str, Any] = features | moved
            return inputs
        tokenizer = self._model.tokenizer
        fill = {"input_ids": tokenizer.pad_token_id or 0}
        fill["token_type_ids"] = tokenizer.pad_token_type_id
        left = tokenizer.padding_side == "left"
        width, names = 0, list(batch[0]["rows"])
        if self._device.type == "cuda":
            width = usual_width(max(item["length"] for item in batch), self._max_tokens or 0)
        matrices = [
            pad_rows([item["rows"][n] for item in batch], fill.get(n, 0), left=left, width=width)
            for n in names
        ]
        on_device = stacked(matrices, self._device).unbind()
        return {**batch[0]["rest"], **dict(zip(names, on_device, strict=True))}

    def sort_key(self, loaded: dict[str, Any]) -> int:
        """Return the number of tokens."""
        return int(loaded["length"])

    def truncated(self, loaded: dict[str, Any]) -> bool:
        """Whether the text had more tokens than the model takes."""
        return bool(loaded["cut"])

    def _describe(self, request: Request, folder: hub.ModelFolder) -> EncoderSpec:
        """Describe the model; a layer or pooling that is not its own is refused."""
        self._precision = request.precision
        modules = [type(module).__name__ for module in self._model]
        with loading.probing(folder):
            dim = self.encode([self.load("a")]).shape[1]
        modes = (m.pooling_mode for m in self._model if type(m).__name__ == "Pooling")
        mode = next(modes, "none")
        pooling = mode if isinstance(mode, str) else "+".join(mode)
        for option, own in (("layer", "sentence_embedding"), ("pooling", pooling)):
            given = getattr(request, option)
            if given is not None and given != own:
                raise UsageError(
                    f"{request.model}: --{option} {given} is not possible; this model fixes it to "
                    f"{own!r}."
                )
        tokenizer = folder.path / "tokenizer.json"
        model_id = request.model.partition("@")[0]
        is_folder = Path(request.model).expanduser().is_dir()
        return EncoderSpec(
            name=slug(model_id),
            modality="textual",
            backend="sentence-transformers",
            model_id=folder.label if is_folder else _default_id(model_id),
            dim=dim,
            layer="sentence_embedding",
            pooling=pooling,
            preprocessing={
                "modules": modules,
                "max_tokens": self._max_tokens,
                "truncation_side": getattr(self._model.tokenizer, "truncation_side", None),
                "prompt": self._prompt,
                "normalisation": "l2" if "Normalize" in modules else "none",
                "tokenizer_sha256": file_sha256(tokenizer) if tokenizer.is_file() else None,
            },
            weights=folder.label,
            weights_sha256=folder.sha256(),
            licence=folder.licence(),
            precision=request.precision,
            libraries=versions("torch", "transformers", "sentence-transformers", "tokenizers"),
            training=training_of(folder.path),
        )

    def _preprocess(self, text: str) -> dict[str, Any]:
        return self._model.preprocess([text], prompt=self._prompt)  # type: ignore[no-any-return]

    def _settle(self) -> None:
        """Find out whether the tokenizer itself gives what the library makes of texts.

        It then gets many in one call, which takes a fourth of the time. The library asks of each
        text whether it is the address of a picture or sound; models of texts alone do not care.
        Where it is one in Rust, that is called directly: what is around it makes objects in Python
        of each token's properties, 20 µs per title in which no other thread can do anything.
        """
        if not self._padded:
            return
        long = "word " * (8 + (self._max_tokens or 512))
        texts = [
            "a",
            "  Some  Words\tin MIXED case, \u00fcn\u00efc\u00f6d\u00e9 \u65e5\u672c \n",
            long,
        ]
        expected: list[Any] = [self._tokenised([text])[0] for text in texts]
        if set(getattr(self._model, "modalities", ["text"])) == {"text"}:
            self._rest = expected[0]["rest"]
            try:
                same = all(map(_same_tokens, self._tokenised(texts), expected))
            except (TypeError, ValueError, LookupError):
                same = False
            self._rest = self._rest if same else None
        self._tokenised(["a"])  # so that no thread has to change the tokenizer's settings
        self._names = tuple(expected[0]["rows"])
        backend = getattr(self._model.tokenizer, "backend_tokenizer", None)
        encode_many = getattr(backend, "encode_batch_fast", None)
        if self._rest is None or encode_many is None:
            return
        self._encode_many = encode_many
        try:
            same = all(map(_same_tokens, self._tokenised(texts), expected))
        except (TypeError, ValueError, LookupError):
            same = False
        self._encode_many = encode_many if same else None

    def _mark_cut(self, texts: list[str], loaded: list[dict[str, Any]]) -> None:
        """Say of texts with as many tokens as the model takes whether they had more before."""
        if self._max_tokens is None or self._untruncated is None:
            return
        full = [k for k, one in enumerate(loaded) if one["length"] >= self._max_tokens]
        if full:
            whole = [(self._prompt or "") + texts[k] for k in full]
            rows = self._untruncated(whole, truncation=False, verbose=False)["input_ids"]
            for k, row in zip(full, rows, strict=True):
                loaded[k]["cut"] = len(row) > loaded[k]["length"]


def _accepts(model: str, modality: str) -> bool:
    """Whether it is a listed name, has the form of a hub id, or is a folder."""
    is_folder = Path(model).expanduser().is_dir()
    return _listed(model) is not None or hub.looks_like_hub_id(model) or is_folder


def _known(modality: str, cache_dir: Path | None) -> list[EncoderInfo]:
    return [
        EncoderInfo(
            name,
            modality,
            "sentence-transformers",
            dim,
            "sentence_embedding",
            pooling,
            licence=LICENCES.get(name),
            input=f"{tokens} tokens" if tokens else "text",
            weights="here" if hub.is_cached(_default_id(name), cache_dir) else "download",
        )
        for name, (dim, tokens, pooling) in MODELS.items()
    ]


FAMILY = EncoderFamily(
    "sentence-transformers", frozenset({"textual"}), _accepts, _known, build=SentenceEncoder
)


def _listed(model: str) -> str | None:
    """The listed name that equals `model` in any case, with or without the organisation."""
    wanted = model.lower().removeprefix(f"{ORGANISATION}/")
    return next((name for name in MODELS if name.lower() == wanted), None)


def _default_id(model: str) -> str:
    """Where a model's own weights are: the folder itself, or the hub id in full."""
    listed = None if Path(model).expanduser().is_dir() else _listed(model)
    if listed is None:
        return model
    return listed if "/" in listed else f"{ORGANISATION}/{listed}"


def _refuse_unfit(folder: hub.ModelFolder, model: Any, networks: list[loading.Loaded]) -> None:
    """Refuse networks without their weights, and texts that lead out of a network's tables.

    A limit that the folder doesn't state is set to what the network has positions for.

    Raises:
        EncoderError: Weights, tokenizer and limit are not of one model.
    """
    pooler = any("pooler_output" in str(getattr(m, "modality_config", "")) for m in model)
    for loaded in networks:
        loading.refuse_unlike(folder, loaded, pooler=pooler)
        positions, longest = loading.n_positions(loaded.network), model.max_seq_length
        if hasattr(model.tokenizer, "get_vocab"):
            loading.refuse_foreign_tokens(folder, loaded.network, model.tokenizer)
        if positions is None or not isinstance(longest, int) or longest <= positions:
            continue
        if longest == getattr(loaded.network.config, "max_position_embeddings", None):
            model.max_seq_length = positions  # the library's guess includes the padding
            continue
        raise EncoderError(
            f"{folder.label}: takes texts of {longest} tokens, and the network has positions for "
            f"{positions}; correct max_seq_length in sentence_bert_config.json"
        )


def _default_prompt(model: Any) -> str | None:
    """What the library puts before every text by default."""
    name = model.default_prompt_name
    return (model.prompts.get(name) or None) if name is not None else None


def _tensors(features: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in features.items() if hasattr(value, "shape")}


def _same_tokens(one: Any, other: Any) -> bool:
    """Whether two loaded texts are equal."""
    rows, others = one["rows"], other["rows"]
    return (
        one["rest"] == other["rest"]
        and rows.keys() == others.keys()
        and all(np.array_equal(row, others[name]) for name, row in rows.items())
    )


def _is_padded(features: dict[str, Any]) -> bool:
    """Whether a model takes token matrices, whose rows can be tokenised alone and padded later."""
    tensors = _tensors(features)
    return {"input_ids", "attention_mask"} <= set(tensors) and all(
        value.ndim == 2 and value.shape == tensors["input_ids"].shape for value in tensors.values()
    )
