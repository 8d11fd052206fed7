"""Edits on disk."""
