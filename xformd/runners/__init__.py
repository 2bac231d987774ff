"""Where a transform runs."""
