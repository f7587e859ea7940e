"""What the operating system says of this process and this machine, and of processes beside it."""
