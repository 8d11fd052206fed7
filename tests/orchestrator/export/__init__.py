"""Exports of finished runs."""
