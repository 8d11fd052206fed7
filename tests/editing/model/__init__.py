"""What runs a decoder."""
