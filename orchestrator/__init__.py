"""Runs: the command line, one durable run of many turns, tuning, data sets, planning, tracking. Uses ``workers`` and ``editing``."""
