"""What happened to a machine, again: ``log`` keeps the last stimuli, ``replay`` feeds them to a fresh one,
``picture`` compares the two, and ``transcript`` writes all of that down."""
