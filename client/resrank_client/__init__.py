"""The gRPC client library of ResRank."""
