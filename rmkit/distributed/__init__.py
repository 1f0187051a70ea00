"""Several processes on one model: how they start, agree and share it."""
