"""The dialects that clients speak on a connection to the netstring port."""
