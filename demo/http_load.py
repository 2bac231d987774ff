"""POST one request after the other until standard input ends; then print how many were answered, and the slowest.

What is not answered with 200 counts as failed: nothing is sent again.
"""

import http.client
import sys
import threading
import time
from collections import Counter

CLIENTS, PAUSE_S = 4, 0.02

answers, failures, waits_s = Counter(), Counter(), []
is_done = threading.Event()


def client(address, path, poem):
    connection = http.client.HTTPConnection(address, timeout=30)
    while not is_done.wait(PAUSE_S):
        began_s = time.monotonic()
        try:
            connection.request("POST", path, poem)
            response = connection.getresponse()
            body = response.read().decode()
        except (OSError, http.client.HTTPException) as error:
            failures[type(error).__name__] += 1
            connection.close()
        else:
            (answers if response.status == 200 else failures)[body] += 1
        waits_s.append(time.monotonic() - began_s)
    connection.close()


threads = [threading.Thread(target=client, args=sys.argv[1:]) for _ in range(CLIENTS)]
for thread in threads:
    thread.start()
sys.stdin.read()
is_done.set()
for thread in threads:
    thread.join()
for answer, times in sorted(answers.items()):
    print(f"{times:>6,} x {answer}")
print(f"{failures.total():>6,} failed", *failures)
print(f"{1000 * max(waits_s, default=0):>6,.0f} ms was the longest wait")
