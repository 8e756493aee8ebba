"""What a training step will take on TPUs that are not here: compiled, read, predicted."""
