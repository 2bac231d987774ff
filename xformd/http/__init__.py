"""The HTTP front: an ASGI application over the service, and the connections that it answers on.

No rule lives here: a request is translated for the service, and what that says is translated for HTTP.
"""
