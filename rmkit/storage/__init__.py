"""What is written to disk: whole or absent, with checksums."""
