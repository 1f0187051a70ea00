"""The parts of python -m rmkit.label: chunks of samples, the scores kept so far, and the records written."""
