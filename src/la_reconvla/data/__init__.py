"""Demonstrations on disk and in memory. Numpy in, tensors out."""
