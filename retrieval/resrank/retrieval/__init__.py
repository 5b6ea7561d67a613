"""The retrieval sidecar: a gRPC server over one index folder, with dense, lexical and hybrid search."""
