"""Divergence: what two hosts do once both changed their copies; each says what, and one gives way."""
