"""Model → artifact of a target: one file `to_<target>.py` each, found by its name."""
