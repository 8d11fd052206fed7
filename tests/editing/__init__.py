"""The method, without a cluster or a command line."""
