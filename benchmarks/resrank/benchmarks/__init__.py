"""Side-by-side measurements: ResRank's parts against the same work done directly, both in one run."""
