"""Models larger than the memory: a budget, a plan, layers streamed from disk. Can be ignored until a model does not fit."""
