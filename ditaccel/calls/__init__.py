"""Call methods, one file each: what a transformer call computes, or when, changed as a whole."""
