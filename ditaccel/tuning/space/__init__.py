"""`tune` over everything: what may vary, what was run, and the race between candidates."""
