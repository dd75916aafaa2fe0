"""What a session did, as a value and as text."""
