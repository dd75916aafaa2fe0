"""One comparison at work: generations of every row on every sample, in turns."""
