"""The search for modules and a learning rate."""
