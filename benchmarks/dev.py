"""From saving a plugin to its new answer: ``python -m benchmarks.dev [--saves N]`` prints the milliseconds.

On this work: ``xformd dev`` with the plugin that ``xformd new`` makes, one line of which is changed; the new answer is
that of a ``POST`` over HTTP, and somebody asks all the time. Beside it stands what a fresh ``xformd run`` takes.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from xformd.kit.new import make_plugin

XFORMD = (sys.executable, "-m", "xformd")
LONGEST_S = 30.0
ASK_EVERY_S = 0.002


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--saves", type=int, default=20)
    saves = parser.parse_args().saves
    with tempfile.TemporaryDirectory() as name:
        folder = make_plugin("shout", "text", Path(name))[0]
        took = [1000 * seconds for seconds in _save(folder, saves)]
        start = time.perf_counter()
        subprocess.run(
            [*XFORMD, "run", "--plugins-dir", folder, "shout"], input=b"owl", capture_output=True, check=True
        )
        fresh = 1000 * (time.perf_counter() - start)
    print(
        f"from saving to the new answer: median {statistics.median(took):.0f} ms, worst {max(took):.0f} ms of {saves}"
    )
    print(f"a fresh 'xformd run' of the same: {fresh:.0f} ms")


def _save(folder: Path, saves: int) -> list[float]:
    """Return how long each save took to be answered, in seconds."""
    command = [*XFORMD, "dev", str(folder), "--no-browser", "--port=0", "--http=tcp:0:interface=127.0.0.1"]
    module = folder / "xformd_shout.py"
    text = module.read_text()
    took = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            url = next(line.split()[-1] for line in server.stdout if "http://" in line)
            for number in range(saves):
                mark = f"{number:04} "
                start = time.perf_counter()
                module.write_text(text.replace("(prefix + line", f"({mark!r} + prefix + line"))
                while mark not in _ask(url):
                    assert time.perf_counter() < start + LONGEST_S, "the change was never served"
                    time.sleep(ASK_EVERY_S)
                took.append(time.perf_counter() - start)
                time.sleep(ASK_EVERY_S * 100)  # its examples run
        finally:
            server.terminate()
    return took


def _ask(url: str) -> str:
    with urllib.request.urlopen(f"{url}/transform/shout", data=b"owl", timeout=LONGEST_S) as response:
        return str(response.read().decode())


if __name__ == "__main__":
    main()
