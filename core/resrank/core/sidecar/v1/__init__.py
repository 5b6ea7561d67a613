"""Version 1 of the sidecar's gRPC API (proto package ``resrank.retrieval.v1``). Generated: see ``retrieval.proto``."""
