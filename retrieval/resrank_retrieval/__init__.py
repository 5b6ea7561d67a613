"""The retrieval sidecar."""
