"""Coherence: what one host may go by until the other is told, and how that is taken back."""
