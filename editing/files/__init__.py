"""Models on disk: find, read, save, and write the edited weights alone."""
