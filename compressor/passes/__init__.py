"""One compression technique a file, named `<verb>_<object>.py` and found by that name."""
