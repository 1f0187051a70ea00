"""The reward model: a classifier of transformers on packed batches, its head, its loss, its attention."""
