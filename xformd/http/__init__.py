"""HTTP/1.1: an ASGI application over the service, and the connections that it answers on.

Invariant: no rule about transforms lives here. A request becomes a call of the service, and its result a response.
"""
