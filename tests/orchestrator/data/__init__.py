"""``ultraedit data``."""
