"""Edit sets: inspect, convert, sample, split, and build from triples."""
