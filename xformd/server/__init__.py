"""A transform server put together, and its reload."""
