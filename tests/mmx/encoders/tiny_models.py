"""Small real checkpoints of the libraries, saved as the libraries save them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

SENTENCE_WORDS = [
    "red",
    "blue",
    "silk",
    "dress",
    "lamp",
    "chair",
    "novel",
    "shoe",
    "the",
    "a",
    "of",
    "##s",
]
WORDS = ["red", "blue", "silk", "dress", "lamp", "chair", "the", "of"]


def sentence_model(
    folder: Path, *, pooling: str = "mean", normalise: bool = True, prompt: str | None = None
) -> Path:
    """A two-layer BERT with pooling, saved as sentence-transformers saves it."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    bare = folder / "bare"
    bare.mkdir(parents=True)
    (bare / "vocab.txt").write_text("\n".join([*special, *SENTENCE_WORDS]))
    BertTokenizerFast(str(bare / "vocab.txt"), model_max_length=16).save_pretrained(bare)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(special) + len(SENTENCE_WORDS), hidden_size=32, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=64, max_position_embeddings=16,
    )  # fmt: skip
    BertModel(config).save_pretrained(bare)
    transformer = Transformer(str(bare), max_seq_length=16)
    modules: list[Any] = [
        transformer,
        Pooling(32, pooling_mode=pooling),
        *([Normalize()] if normalise else []),
    ]
    prompts = {"passage": prompt} if prompt else None
    model = SentenceTransformer(
        modules=modules,
        device="cpu",
        prompts=prompts,
        default_prompt_name="passage" if prompt else None,
    )
    model.save(str(folder / "Tiny.BERT-v1"), create_model_card=False)
    shutil.rmtree(bare)
    return folder / "Tiny.BERT-v1"


def tokenizer(folder: Path, limit: int = 16) -> Any:
    from transformers import BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])
    )
    made = BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=limit)
    made.save_pretrained(folder)
    return made


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def transformers_models(place: Path) -> Path:
    """A model of each kind, in a folder of its own below `place`."""
    import torch
    import transformers as t

    torch.manual_seed(0)
    small = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    vit = {**small, "image_size": 32, "patch_size": 8}
    save(t.ViTModel(t.ViTConfig(**vit)), place / "vit")
    save(
        t.Dinov2Model(t.Dinov2Config(**{k: v for k, v in vit.items() if k != "intermediate_size"})),
        place / "dinov2",
    )
    save(
        t.ConvNextModel(t.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)),
        place / "convnext",
    )
    for name in ("vit", "dinov2", "convnext"):
        t.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(place / name)
    text = {**small, "vocab_size": 5 + len(WORDS), "max_position_embeddings": 16}
    save(t.BertModel(t.BertConfig(**text)), place / "bert")
    tokenizer(place / "bert")
    clip = t.CLIPConfig(
        text_config={**text, "eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0},
        vision_config=vit,
        projection_dim=12,
    )
    save(t.CLIPModel(clip), place / "clip")
    t.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(place / "clip")
    tokenizer(place / "clip")
    siglip = t.SiglipConfig(text_config={**text, "projection_size": 16}, vision_config=vit)
    save(t.SiglipModel(siglip), place / "siglip")
    t.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(place / "siglip")
    tokenizer(place / "siglip")
    wav = t.Wav2Vec2Config(
        **small, conv_dim=[8, 8], conv_stride=[5, 4], conv_kernel=[10, 8],
        num_feat_extract_layers=2, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    save(t.Wav2Vec2Model(wav), place / "wav2vec2")
    t.Wav2Vec2FeatureExtractor().save_pretrained(place / "wav2vec2")
    save(t.ASTModel(t.ASTConfig(**small, max_length=64, num_mel_bins=16)), place / "ast")
    t.ASTFeatureExtractor(max_length=64, num_mel_bins=16).save_pretrained(place / "ast")
    whisper = t.WhisperConfig(
        d_model=16, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_mel_bins=16,
        max_source_positions=100, vocab_size=20, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1,
    )  # fmt: skip
    save(t.WhisperModel(whisper), place / "whisper")
    t.WhisperFeatureExtractor(feature_size=16, chunk_length=2).save_pretrained(place / "whisper")
    audio = t.ClapAudioConfig(
        num_mel_bins=64, spec_size=64, patch_size=4, patch_stride=[4, 4], hidden_size=16,
        patch_embeds_hidden_size=8, depths=[1, 1], num_attention_heads=[2, 2], num_hidden_layers=2,
        window_size=4, projection_dim=8, num_classes=4,
    )  # fmt: skip
    clap_text = t.ClapTextConfig(
        **{**text, "max_position_embeddings": 18}, pad_token_id=0, projection_dim=8
    )
    clap = t.ClapConfig(
        text_config=clap_text.to_dict(), audio_config=audio.to_dict(), projection_dim=8
    )
    save(t.ClapModel(clap), place / "clap")
    t.ClapFeatureExtractor(
        sampling_rate=16000, max_length_s=1, frequency_max=8000, truncation="rand_trunc"
    ).save_pretrained(place / "clap")
    return place
