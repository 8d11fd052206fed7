"""Whether edits worked, and whether the model is still itself."""
