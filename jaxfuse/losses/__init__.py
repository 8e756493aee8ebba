"""Terms of a training loss: pure functions of images and features that return scalars."""
