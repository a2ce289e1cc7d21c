"""The third voice: who of the two hosts may go on without the other."""
