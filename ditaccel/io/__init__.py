"""Disk, terminal and Hub: what the commands share."""
