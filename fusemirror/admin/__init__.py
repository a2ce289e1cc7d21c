"""The socket of a mount that the commands talk to."""
