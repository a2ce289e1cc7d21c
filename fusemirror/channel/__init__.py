"""The one-way channel paths between two hosts: streams, sessions over them, and links of two sessions."""
