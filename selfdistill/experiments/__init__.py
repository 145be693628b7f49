"""A run, a comparison and the benchmark: what the commands do."""
