"""What python -m rmkit.train is made of."""
