"""Twisted plumbing that knows no transform: endpoints, listeners, transports, deadlines, the reactor."""
