"""Find modules and a learning rate for a model that nobody has measured."""
