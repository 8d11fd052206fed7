"""How a worker holds its model: whole, as one shard of it, or streamed within a memory budget."""
