"""What the Python models of Triton compute. Their ``model.py`` files only turn tensors into arrays and back."""
