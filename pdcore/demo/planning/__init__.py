"""What a run will be, and whether this machine and the model allow it: decided before a process starts."""
