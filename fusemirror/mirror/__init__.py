"""The mirror: keeps the subvolume a prefix of main, by sending, applying, copying and verifying."""
