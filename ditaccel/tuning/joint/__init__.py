"""Which steps to compute, and which of them sparsely: one budget of error for both."""
