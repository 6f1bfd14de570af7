"""What a user can send, bounded, and the errors that say so."""
