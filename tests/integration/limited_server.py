"""A server with the limits of $LIMITS, a JSON object: a process for tests that cannot wait for the defaults."""

import json
import os

from xformd import process
from xformd.config import Settings
from xformd.endpoint import tcp_server
from xformd.limits import Limits
from xformd.plugins.loader import Selection

if __name__ == "__main__":
    process.serve(
        Settings(
            listen=(tcp_server("127.0.0.1", 0),),
            selection=Selection(distributions=frozenset()),
            limits=Limits(**json.loads(os.environ["LIMITS"])),
        ),
        lambda line: print(line, flush=True),
    )
