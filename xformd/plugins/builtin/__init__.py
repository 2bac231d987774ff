"""The transforms that come along."""
