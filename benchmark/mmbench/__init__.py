"""mmbench: training and evaluation of multimodal recommenders on feature stores."""

from mmbase import __version__ as __version__
