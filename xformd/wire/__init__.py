"""Bytes to messages and back. Pure: no I/O, no Twisted, no clock."""
