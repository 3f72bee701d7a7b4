"""Factored gradients: gathered inside backward, and unscaled there under mixed precision."""
