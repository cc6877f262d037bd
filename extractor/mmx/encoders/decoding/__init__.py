"""Image and sound files decoded: RGB pictures of every kind, mono samples at a model's rate."""

from mmx.encoders.decoding.memory import alone, bounded, waited_s
from mmx.encoders.decoding.pictures import check_pixels, decode_rgb
from mmx.encoders.decoding.reading import observed, on_background, remembered, shared_decoding, tell
from mmx.encoders.decoding.sounds import Resampler, read_mono

__all__ = [
    "Resampler", "alone", "bounded", "check_pixels", "decode_rgb", "observed", "on_background",
    "read_mono", "remembered", "shared_decoding", "tell", "waited_s",
]  # fmt: skip
