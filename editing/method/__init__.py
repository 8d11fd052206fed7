"""The paper and nothing else: tensors in, tensors out. Moments, targets, the solve, the shift, and what the ridge preserves."""
