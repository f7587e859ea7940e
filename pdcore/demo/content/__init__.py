"""What must be where in the memory of a rank: the caches of real models, cut by rank, as words of a seed."""
