"""Models larger than the memory they are given."""
