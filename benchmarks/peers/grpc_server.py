"""gRPC's asyncio server, one unary method. Bytes are the message: there is no protobuf to pay for."""

import asyncio
from typing import Any

import grpc

SERVICE = "xformd.Transform"
METHOD = "cummingsify"
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


async def cummingsify(poem: bytes, context: object) -> bytes:  # noqa: ARG001 - gRPC's signature
    """Lower-case the poem."""
    return poem.decode().lower().encode()


async def main() -> None:
    server = grpc.aio.server(options=OPTIONS)
    handlers: dict[str, Any] = {METHOD: grpc.unary_unary_rpc_method_handler(cummingsify)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"listening on 127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
