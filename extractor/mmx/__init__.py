"""mmx: batch extraction of visual, textual and audio features from raw item content."""

from mmbase import __version__ as __version__
