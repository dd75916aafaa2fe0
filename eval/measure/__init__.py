"""What a generation takes: time, work and memory, counted from outside."""
