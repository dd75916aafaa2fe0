"""What call methods share."""
