"""Twisted plumbing that knows no transforms: endpoints, listeners, transports, deadlines, the reactor."""
