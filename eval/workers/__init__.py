"""Several workers of one evaluation: who makes which sample, and how their parts come together."""
