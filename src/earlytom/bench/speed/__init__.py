"""Time to first token by stage, of models with and without compression."""
