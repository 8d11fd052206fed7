"""Settings that are known to work for a model."""
