"""Batch jobs: a file of rows in, thousands of pictures or videos out; see `ditaccel generate`."""
