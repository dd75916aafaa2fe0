"""What a call of a transformer is: whose it is, how it is patched, what goes in and comes out."""
