"""One run: its loop, its folder, its end and its resumption."""
