"""Which slice of a linear a worker holds, and the collectives by which workers combine what each has computed of a turn."""
