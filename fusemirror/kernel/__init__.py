"""Between the kernel and us: the FUSE protocol, and the session that serves it. Knows of no volume."""
