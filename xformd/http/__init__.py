"""The HTTP front: an ASGI application over the service. It translates, and holds no rule of its own."""
