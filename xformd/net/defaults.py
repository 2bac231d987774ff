"""Default addresses and ports, usable without Twisted."""

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 11_000
DEFAULT_PROXY_PORT = 11_001
DEFAULT_HTTP_PORT = 11_080
DEFAULT_POEM_PORT = 10_000
DEFAULT_POEM_PROXY_PORT = 10_001


def tcp_server(host: str = DEFAULT_HOST, port: int = DEFAULT_PORT) -> str:
    """Return the Twisted server endpoint string for a host and a port."""
    quoted = host.replace("\\", r"\\").replace(":", r"\:")
    return f"tcp:{port}:interface={quoted}"
