"""The formulas of the paper."""
