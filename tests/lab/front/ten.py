"""A client that asks ten times a second through the front until standard input ends; prints as JSON who
answered how often, what was not answered, and the longest time between two answers.
"""

import collections
import http.client
import itertools
import json
import select
import sys
import threading
import time

EVERY_S = 0.1
PATIENCE_S = 60.0
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "1"}], "max_tokens": 3, "temperature": 0}
seen, moments = collections.Counter(), []


def ask(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(BODY), {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        answer = response.read()
        who = (
            json.loads(answer)["system_fingerprint"] if response.status == 200 else f"lost: {response.status}"
        )
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
        who = f"lost: {error!r}"
    finally:
        connection.close()
    seen[who] += 1
    moments.append(time.monotonic())


def main(port):
    asking = []
    while not select.select([sys.stdin], [], [], EVERY_S)[0]:
        asking.append(threading.Thread(target=ask, args=(port,)))
        asking[-1].start()
    for each in asking:
        each.join()
    moments.sort()
    gap = max((later - earlier for earlier, later in itertools.pairwise(moments)), default=0.0)
    lost = {who: count for who, count in seen.items() if who.startswith("lost")}
    answered = {who: count for who, count in seen.items() if who not in lost}
    print(json.dumps({"answered": answered, "lost": lost, "longest_gap_s": round(gap, 2)}))


main(int(sys.argv[1]))
