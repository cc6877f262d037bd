"""mmx: batch extraction of visual, textual and audio features from raw item content."""

__version__ = "0.1.0"
