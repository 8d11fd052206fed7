"""Measurements that people start, and small tests of them."""
