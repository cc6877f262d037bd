"""Tables of the libraries' models, so that `mmx models` lists them without importing a library.

Tests compare them with the libraries.
"""

from __future__ import annotations

TORCHVISION_VERSION = "0.26."
"""The torchvision that the tables are of; only another one may have models that they lack."""

# name: (length of the default layer's vector, input size in pixels, file of the default weights)
TORCHVISION: dict[str, tuple[int, int, str]] = {
    "alexnet": (4096, 224, "alexnet-owt-7be5be79.pth"),
    "convnext_base": (1024, 224, "convnext_base-6075fbad.pth"),
    "convnext_large": (1536, 224, "convnext_large-ea097f82.pth"),
    "convnext_small": (768, 224, "convnext_small-0c510722.pth"),
    "convnext_tiny": (768, 224, "convnext_tiny-983f1562.pth"),
    "densenet121": (1024, 224, "densenet121-a639ec97.pth"),
    "densenet161": (2208, 224, "densenet161-8d451a50.pth"),
    "densenet169": (1664, 224, "densenet169-b2777c0a.pth"),
    "densenet201": (1920, 224, "densenet201-c1103571.pth"),
    "efficientnet_b0": (1280, 224, "efficientnet_b0_rwightman-7f5810bc.pth"),
    "efficientnet_b1": (1280, 240, "efficientnet_b1-c27df63c.pth"),
    "efficientnet_b2": (1408, 288, "efficientnet_b2_rwightman-c35c1473.pth"),
    "efficientnet_b3": (1536, 300, "efficientnet_b3_rwightman-b3899882.pth"),
    "efficientnet_b4": (1792, 380, "efficientnet_b4_rwightman-23ab8bcd.pth"),
    "efficientnet_b5": (2048, 456, "efficientnet_b5_lukemelas-1a07897c.pth"),
    "efficientnet_b6": (2304, 528, "efficientnet_b6_lukemelas-24a108a5.pth"),
    "efficientnet_b7": (2560, 600, "efficientnet_b7_lukemelas-c5b4e57e.pth"),
    "efficientnet_v2_l": (1280, 480, "efficientnet_v2_l-59c71312.pth"),
    "efficientnet_v2_m": (1280, 480, "efficientnet_v2_m-dc08266a.pth"),
    "efficientnet_v2_s": (1280, 384, "efficientnet_v2_s-dd5fe13b.pth"),
    "googlenet": (1024, 224, "googlenet-1378be20.pth"),
    "inception_v3": (2048, 299, "inception_v3_google-0cc3c7bd.pth"),
    "maxvit_t": (512, 224, "maxvit_t-bc5ab103.pth"),
    "mnasnet0_5": (1280, 224, "mnasnet0.5_top1_67.823-3ffadce67e.pth"),
    "mnasnet0_75": (1280, 224, "mnasnet0_75-7090bc5f.pth"),
    "mnasnet1_0": (1280, 224, "mnasnet1.0_top1_73.512-f206786ef8.pth"),
    "mnasnet1_3": (1280, 224, "mnasnet1_3-a4c69d6f.pth"),
    "mobilenet_v2": (1280, 224, "mobilenet_v2-7ebf99e0.pth"),
    "mobilenet_v3_large": (960, 224, "mobilenet_v3_large-5c1a4163.pth"),
    "mobilenet_v3_small": (576, 224, "mobilenet_v3_small-047dcff4.pth"),
    "regnet_x_16gf": (2048, 224, "regnet_x_16gf-ba3796d7.pth"),
    "regnet_x_1_6gf": (912, 224, "regnet_x_1_6gf-a12f2b72.pth"),
    "regnet_x_32gf": (2520, 224, "regnet_x_32gf-6eb8fdc6.pth"),
    "regnet_x_3_2gf": (1008, 224, "regnet_x_3_2gf-7071aa85.pth"),
    "regnet_x_400mf": (400, 224, "regnet_x_400mf-62229a5f.pth"),
    "regnet_x_800mf": (672, 224, "regnet_x_800mf-94a99ebd.pth"),
    "regnet_x_8gf": (1920, 224, "regnet_x_8gf-2b70d774.pth"),
    "regnet_y_128gf": (7392, 384, "regnet_y_128gf_swag-c8ce3e52.pth"),
    "regnet_y_16gf": (3024, 224, "regnet_y_16gf-3e4a00f9.pth"),
    "regnet_y_1_6gf": (888, 224, "regnet_y_1_6gf-0d7bc02a.pth"),
    "regnet_y_32gf": (3712, 224, "regnet_y_32gf-8db6d4b5.pth"),
    "regnet_y_3_2gf": (1512, 224, "regnet_y_3_2gf-9180c971.pth"),
    "regnet_y_400mf": (440, 224, "regnet_y_400mf-e6988f5f.pth"),
    "regnet_y_800mf": (784, 224, "regnet_y_800mf-58fc7688.pth"),
    "regnet_y_8gf": (2016, 224, "regnet_y_8gf-dc2b1b54.pth"),
    "resnet101": (2048, 224, "resnet101-cd907fc2.pth"),
    "resnet152": (2048, 224, "resnet152-f82ba261.pth"),
    "resnet18": (512, 224, "resnet18-f37072fd.pth"),
    "resnet34": (512, 224, "resnet34-b627a593.pth"),
    "resnet50": (2048, 224, "resnet50-11ad3fa6.pth"),
    "resnext101_32x8d": (2048, 224, "resnext101_32x8d-110c445d.pth"),
    "resnext101_64x4d": (2048, 224, "resnext101_64x4d-173b62eb.pth"),
    "resnext50_32x4d": (2048, 224, "resnext50_32x4d-1a0047aa.pth"),
    "shufflenet_v2_x0_5": (1024, 224, "shufflenetv2_x0.5-f707e7126e.pth"),
    "shufflenet_v2_x1_0": (1024, 224, "shufflenetv2_x1-5666bf0f80.pth"),
    "shufflenet_v2_x1_5": (1024, 224, "shufflenetv2_x1_5-3c479a10.pth"),
    "shufflenet_v2_x2_0": (2048, 224, "shufflenetv2_x2_0-8be3c8ee.pth"),
    "squeezenet1_0": (512, 224, "squeezenet1_0-b66bff10.pth"),
    "squeezenet1_1": (512, 224, "squeezenet1_1-b8a52dc0.pth"),
    "swin_b": (1024, 224, "swin_b-68c6b09e.pth"),
    "swin_s": (768, 224, "swin_s-5e29d889.pth"),
    "swin_t": (768, 224, "swin_t-704ceda3.pth"),
    "swin_v2_b": (1024, 256, "swin_v2_b-781e5279.pth"),
    "swin_v2_s": (768, 256, "swin_v2_s-637d8ceb.pth"),
    "swin_v2_t": (768, 256, "swin_v2_t-b137f0e2.pth"),
    "vgg11": (4096, 224, "vgg11-8a719046.pth"),
    "vgg11_bn": (4096, 224, "vgg11_bn-6002323d.pth"),
    "vgg13": (4096, 224, "vgg13-19584684.pth"),
    "vgg13_bn": (4096, 224, "vgg13_bn-abd245e5.pth"),
    "vgg16": (4096, 224, "vgg16-397923af.pth"),
    "vgg16_bn": (4096, 224, "vgg16_bn-6c64b313.pth"),
    "vgg19": (4096, 224, "vgg19-dcbb9e9d.pth"),
    "vgg19_bn": (4096, 224, "vgg19_bn-c79401a0.pth"),
    "vit_b_16": (768, 224, "vit_b_16-c867db91.pth"),
    "vit_b_32": (768, 224, "vit_b_32-d86f8d99.pth"),
    "vit_h_14": (1280, 518, "vit_h_14_swag-80465313.pth"),
    "vit_l_16": (1024, 224, "vit_l_16-852ce7e3.pth"),
    "vit_l_32": (1024, 224, "vit_l_32-c7638314.pth"),
    "wide_resnet101_2": (2048, 224, "wide_resnet101_2-d733dc28.pth"),
    "wide_resnet50_2": (2048, 224, "wide_resnet50_2-9ba9bcbe.pth"),
}

# Default output by the beginning of the name: the last representation before the classifier, and
# its pooling. Dropout does nothing at inference, so the layer before it is named.
TORCHVISION_LAYERS: tuple[tuple[str, str, str], ...] = (
    ("alexnet", "classifier.4", "none"),  # second fully connected layer, before its ReLU
    ("convnext", "classifier.1", "none"),  # average pool, layer norm, flatten
    ("densenet", "flatten", "none"),
    ("efficientnet", "avgpool", "none"),
    ("googlenet", "avgpool", "none"),
    ("inception", "avgpool", "none"),
    ("maxvit", "classifier.4", "none"),  # average pool, layer norm, linear, tanh
    ("mnasnet", "mean", "none"),
    ("mobilenet_v2", "flatten", "none"),
    ("mobilenet_v3", "avgpool", "none"),
    ("regnet", "avgpool", "none"),
    ("resnet", "avgpool", "none"),
    ("resnext", "avgpool", "none"),
    ("shufflenet", "mean", "none"),
    ("squeezenet", "features", "mean"),  # the classifier is a convolution
    ("swin", "avgpool", "none"),  # after the last layer norm
    ("vgg", "classifier.3", "none"),  # second fully connected layer, before its ReLU
    ("vit", "encoder.ln", "cls"),
    ("wide_resnet", "avgpool", "none"),
)

# Weights whose publisher states a licence in torchvision's registry.
TORCHVISION_LICENCES = {
    "regnet_y_128gf": "https://github.com/facebookresearch/SWAG/blob/main/LICENSE",
    "vit_h_14": "https://github.com/facebookresearch/SWAG/blob/main/LICENSE",
}

# As of torchaudio 2.11. name: (dimension, number of layers, file of the weights)
TORCHAUDIO: dict[str, tuple[int, int, str]] = {
    "HUBERT_ASR_LARGE": (1024, 24, "hubert_fairseq_large_ll60k_asr_ls960.pth"),
    "HUBERT_ASR_XLARGE": (1280, 48, "hubert_fairseq_xlarge_ll60k_asr_ls960.pth"),
    "HUBERT_BASE": (768, 12, "hubert_fairseq_base_ls960.pth"),
    "HUBERT_LARGE": (1024, 24, "hubert_fairseq_large_ll60k.pth"),
    "HUBERT_XLARGE": (1280, 48, "hubert_fairseq_xlarge_ll60k.pth"),
    "VOXPOPULI_ASR_BASE_10K_DE": (768, 12, "wav2vec2_voxpopuli_base_10k_asr_de.pt"),
    "VOXPOPULI_ASR_BASE_10K_EN": (768, 12, "wav2vec2_voxpopuli_base_10k_asr_en.pt"),
    "VOXPOPULI_ASR_BASE_10K_ES": (768, 12, "wav2vec2_voxpopuli_base_10k_asr_es.pt"),
    "VOXPOPULI_ASR_BASE_10K_FR": (768, 12, "wav2vec2_voxpopuli_base_10k_asr_fr.pt"),
    "VOXPOPULI_ASR_BASE_10K_IT": (768, 12, "wav2vec2_voxpopuli_base_10k_asr_it.pt"),
    "WAV2VEC2_ASR_BASE_100H": (768, 12, "wav2vec2_fairseq_base_ls960_asr_ls100.pth"),
    "WAV2VEC2_ASR_BASE_10M": (768, 12, "wav2vec2_fairseq_base_ls960_asr_ll10m.pth"),
    "WAV2VEC2_ASR_BASE_960H": (768, 12, "wav2vec2_fairseq_base_ls960_asr_ls960.pth"),
    "WAV2VEC2_ASR_LARGE_100H": (1024, 24, "wav2vec2_fairseq_large_ls960_asr_ls100.pth"),
    "WAV2VEC2_ASR_LARGE_10M": (1024, 24, "wav2vec2_fairseq_large_ls960_asr_ll10m.pth"),
    "WAV2VEC2_ASR_LARGE_960H": (1024, 24, "wav2vec2_fairseq_large_ls960_asr_ls960.pth"),
    "WAV2VEC2_ASR_LARGE_LV60K_100H": (1024, 24, "wav2vec2_fairseq_large_lv60k_asr_ls100.pth"),
    "WAV2VEC2_ASR_LARGE_LV60K_10M": (1024, 24, "wav2vec2_fairseq_large_lv60k_asr_ll10m.pth"),
    "WAV2VEC2_ASR_LARGE_LV60K_960H": (1024, 24, "wav2vec2_fairseq_large_lv60k_asr_ls960.pth"),
    "WAV2VEC2_BASE": (768, 12, "wav2vec2_fairseq_base_ls960.pth"),
    "WAV2VEC2_LARGE": (1024, 24, "wav2vec2_fairseq_large_ls960.pth"),
    "WAV2VEC2_LARGE_LV60K": (1024, 24, "wav2vec2_fairseq_large_lv60k.pth"),
    "WAV2VEC2_XLSR53": (1024, 24, "wav2vec2_fairseq_large_xlsr53.pth"),
    "WAV2VEC2_XLSR_1B": (1280, 48, "wav2vec2_xlsr_1b.pth"),
    "WAV2VEC2_XLSR_2B": (1920, 48, "wav2vec2_xlsr_2b.pth"),
    "WAV2VEC2_XLSR_300M": (1024, 24, "wav2vec2_xlsr_300m.pth"),
    "WAVLM_BASE": (768, 12, "wavlm_base.pth"),
    "WAVLM_BASE_PLUS": (768, 12, "wavlm_base_plus.pth"),
    "WAVLM_LARGE": (1024, 24, "wavlm_large.pth"),
}

# (modality, name, dimension, layer, pooling, input, licence); any other hub id or folder works too.
TRANSFORMERS: tuple[tuple[str, str, int, str, str, str, str | None], ...] = (
    ("visual", "google/vit-base-patch16-224", 768, "last", "cls", "224 x 224 RGB", "apache-2.0"),
    ("visual", "facebook/dinov2-base", 768, "last", "cls", "224 x 224 RGB", "apache-2.0"),
    ("visual", "microsoft/swin-base-patch4-window7-224",
        1024, "last", "mean", "224 x 224 RGB", "apache-2.0"),
    ("visual", "openai/clip-vit-base-patch32", 512, "projection", "none", "224 x 224 RGB", None),
    ("visual", "google/siglip-base-patch16-224",
        768, "projection", "none", "224 x 224 RGB", "apache-2.0"),
    ("textual", "openai/clip-vit-base-patch32", 512, "projection", "none", "77 tokens", None),
    ("textual", "google/siglip-base-patch16-224",
        768, "projection", "none", "64 tokens", "apache-2.0"),
    ("textual", "laion/clap-htsat-unfused", 512, "projection", "none", "512 tokens", "apache-2.0"),
    ("textual", "FacebookAI/roberta-base", 768, "last", "mean", "512 tokens", "mit"),
    ("audio", "MIT/ast-finetuned-audioset-10-10-0.4593",
        768, "last", "mean", "10 s at 16 kHz", "bsd-3-clause"),
    ("audio", "facebook/wav2vec2-base", 768, "last", "mean", "16 kHz mono", "apache-2.0"),
    ("audio", "openai/whisper-base", 512, "last", "mean", "30 s at 16 kHz", "apache-2.0"),
    ("audio", "laion/clap-htsat-unfused",
        512, "projection", "none", "10 s at 48 kHz", "apache-2.0"),
)  # fmt: skip
