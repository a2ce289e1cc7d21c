"""The protocol of the channel paths: bytes in, messages out, no input or output of its own."""
