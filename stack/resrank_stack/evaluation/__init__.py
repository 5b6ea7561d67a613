"""``resrank eval``: a checkpoint in torch or behind the deployed stack, on judged collections."""
