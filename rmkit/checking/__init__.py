"""What the readers of a saved model give, beside what rmkit gave."""
