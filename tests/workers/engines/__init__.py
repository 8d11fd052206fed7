"""Whole, sharded and streamed models."""
