"""The communication volume: holds the backup's requests on their way to the primary."""
