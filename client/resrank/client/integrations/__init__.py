"""Components of search frameworks over the client: each module needs its framework, the extra of its name."""
