"""What is spoken on a connection: the classic form, sessions, and what they need of a connection."""
