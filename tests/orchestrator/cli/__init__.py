"""Other commands."""
