"""What training minimises: a listwise loss on the scores and InfoNCE on the embeddings."""
