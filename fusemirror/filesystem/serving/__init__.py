"""What our own session with the kernel serves: bytes become calls of `requests/`, and answers bytes."""
