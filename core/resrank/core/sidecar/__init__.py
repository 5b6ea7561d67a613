"""The retrieval sidecar's wire contract: the proto and the Python stubs generated from it."""
