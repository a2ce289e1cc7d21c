"""The commands: thin, one module each. What they import at the top is light, so that they start quickly."""
