"""Peers: other projects' caches, one file each."""
