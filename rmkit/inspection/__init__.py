"""What `python -m rmkit.inspect` is made of: what is in the pairs, before money is spent on them."""
