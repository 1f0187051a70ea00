"""What python -m rmkit.label is made of: chunks of samples, the scores kept so far, and the records written."""
