"""Runs through the command line."""
