"""What makes one run durable: edits in, turns, checkpoints, ledger, resume, rollback, and its finished folder."""
