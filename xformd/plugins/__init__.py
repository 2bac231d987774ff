"""Plugins: what they define, and how they are found, selected and loaded into a Registry. No Twisted."""
