"""What runs a decoder: tokens, the frozen prefix, the suffix with its captures, the head on chosen rows, greedy text."""
