"""The face to the kernel: requests of pyfuse3 become operations of the control unit and back."""
