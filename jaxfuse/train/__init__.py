"""The loop that trains: state, one pure update and its two wrappers, logs, checkpoints."""
