"""What a checkpoint is worth: candidates, scorers, measures, significance, sensitivity."""
