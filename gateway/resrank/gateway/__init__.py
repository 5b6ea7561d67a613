"""The HTTP gateway: the schemas that existing clients of rerankers speak, in front of the gRPC client library."""
