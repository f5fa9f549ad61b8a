"""A WebSocket client and server of the package `websockets`.

websocket_peer.py serve     prints {"port": N} and echoes what it hears in capitals
websocket_peer.py talk URL  says a few words, one of them long, and prints what came back
"""

import asyncio
import json
import sys

from websockets.asyncio.client import connect
from websockets.asyncio.server import serve


def say(**words):
    print(json.dumps(words), flush=True)


async def shout(socket):
    async for word in socket:
        await socket.send(word.upper())


async def run_server():
    async with serve(shout, "127.0.0.1", 0) as server:
        say(port=server.sockets[0].getsockname()[1])
        await server.serve_forever()


async def talk(url):
    async with connect(url, proxy=None, additional_headers={"X-Operation-Name": "chat"}) as socket:
        heard = []
        for word in ("first", "second", "x" * 200_000):
            await socket.send(word)
            heard.append((await socket.recv())[:10])
        await socket.ping()
        await socket.send(b"bytes \x00\xff")
        heard.append((await socket.recv()).hex())
    say(heard=heard, code=socket.close_code)


asyncio.run(run_server() if sys.argv[1] == "serve" else talk(sys.argv[2]))
