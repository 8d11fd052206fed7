"""The command line, one file a command group; ``main`` wires them and turns every expected failure into one line."""
