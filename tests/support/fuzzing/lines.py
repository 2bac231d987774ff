"""What schemathesis cannot know by itself: how lines of JSON are sent."""

import json

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def send(context: object, value: object) -> bytes:
    """Send them as they are."""
    return (value if isinstance(value, str) else json.dumps(value)).encode(errors="replace")
