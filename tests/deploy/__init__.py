"""What is copied to a cluster, and runs on a real one of two nodes."""
