"""Public data sets: where their files lie, what their labels mean, and prepared records of them."""
