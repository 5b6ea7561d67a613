"""The schemas that clients of rerankers and encoders speak: bodies of requests and answers."""
