"""What is measured while editing."""
