"""Runs ResRank on one machine: the command line, Triton and the sidecar as processes."""
