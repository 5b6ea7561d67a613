"""The store on one machine: an index folder with SQLite for the truth, FAISS and FTS5 to search it."""
