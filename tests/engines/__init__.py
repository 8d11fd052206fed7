"""Real engines: make test-engines."""
