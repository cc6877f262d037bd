"""The transformers models that `mmx models` lists, and what is known of them without loading one."""

from __future__ import annotations

PROJECTION = "projection"

MODELS: dict[str, dict[str, tuple[int, str, str, str, str | None]]] = {
    "visual": {
        "google/vit-base-patch16-224": (768, "last", "cls", "224 x 224 RGB", "apache-2.0"),
        "facebook/dinov2-base": (768, "last", "cls", "224 x 224 RGB", "apache-2.0"),
        "microsoft/swin-base-patch4-window7-224": (
            1024,
            "last",
            "mean",
            "224 x 224 RGB",
            "apache-2.0",
        ),
        "openai/clip-vit-base-patch32": (512, PROJECTION, "none", "224 x 224 RGB", None),
        "google/siglip-base-patch16-224": (768, PROJECTION, "none", "224 x 224 RGB", "apache-2.0"),
    },
    "textual": {
        "openai/clip-vit-base-patch32": (512, PROJECTION, "none", "77 tokens", None),
        "google/siglip-base-patch16-224": (768, PROJECTION, "none", "64 tokens", "apache-2.0"),
        "laion/clap-htsat-unfused": (512, PROJECTION, "none", "512 tokens", "apache-2.0"),
        "FacebookAI/roberta-base": (768, "last", "mean", "512 tokens", "mit"),
    },
    "audio": {
        "MIT/ast-finetuned-audioset-10-10-0.4593": (
            768,
            "last",
            "mean",
            "10 s at 16 kHz",
            "bsd-3-clause",
        ),
        "facebook/wav2vec2-base": (768, "last", "mean", "16 kHz mono", "apache-2.0"),
        "openai/whisper-base": (512, "last", "mean", "30 s at 16 kHz", "apache-2.0"),
        "laion/clap-htsat-unfused": (512, PROJECTION, "none", "10 s at 48 kHz", "apache-2.0"),
    },
}
"""By modality; any other hub id or folder works too: (dimension, layer, pooling, input, licence)."""
