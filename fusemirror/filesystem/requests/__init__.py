"""The kernel's requests, in a class for each thing that they are about. No policy, and no bytes."""
