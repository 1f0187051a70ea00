"""The parts of python -m rmkit.train: inputs, optimizer, validation, metrics, trackers."""
