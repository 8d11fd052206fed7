"""Which slice of a linear a worker holds, and the collectives by which workers share what a slice cannot know."""
