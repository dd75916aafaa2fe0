"""Module granularity: the outputs of attention and MLP modules, which of them rest, and when."""
