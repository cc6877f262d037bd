"""mmbench: training and evaluation of multimodal recommenders on feature stores."""

__version__ = "0.1.0"
