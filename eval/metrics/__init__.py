"""Quality metrics: decoded frames in, plain numbers out; one file each."""
