"""Tells schemathesis how JSON lines are sent."""

import json

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def serialize(context: object, value: object) -> bytes:
    return (value if isinstance(value, str) else json.dumps(value)).encode(errors="replace")
