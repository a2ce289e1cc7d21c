"""fusemirror: one filesystem on two hosts, with a complete copy on each host's own disk."""

__version__ = "0.2.0"
