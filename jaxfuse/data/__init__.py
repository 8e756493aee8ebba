"""Pairs of images on their way to a model: NumPy arrays, no JAX, no knowledge of models."""
