"""A client that streams until it is killed: several answers at once, some of which it doesn't read.

`python doomed_client.py PORT SEED` says "asked" once its requests are on their way. It imports next to nothing, so that
it is up at once.
"""

import json
import random
import select
import socket
import sys

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


def ask(port: int, draw: random.Random) -> socket.socket:
    """Sends a request whose answer takes longer than this client lives."""
    path = draw.choice((COMPLETIONS, CHAT))
    text = " + ".join(str(draw.randrange(100)) for _ in range(draw.choice((2, 5, 20))))
    body: dict[str, object] = {"max_tokens": 390, "ignore_eos": True, "n": draw.choice((1, 1, 3))}
    body |= {"prompt": text} if path == COMPLETIONS else {"messages": [{"role": "user", "content": text}]}
    body["stream"] = draw.random() < 0.9
    data = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data)
    return connection


def main(port: int, seed: int) -> None:
    draw = random.Random(seed)
    connections = [ask(port, draw) for _ in range(draw.randint(1, 4))]
    read = [each for each in connections if draw.random() < 0.7]
    print("asked", flush=True)
    while True:
        for connection in select.select(read, (), (), None)[0]:
            if not connection.recv(1 << 16):
                read.remove(connection)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
