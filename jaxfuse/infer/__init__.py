"""Fusing with a trained model: arrays, files and folders, any size. Never imports `train`."""
