"""LA-ReconVLA: language-attention-guided masked reconstruction for vision-language-action policies."""

__version__ = "0.2.0"
