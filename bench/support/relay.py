"""Passes bytes on from one port to another: ``python -m bench.support.relay PORT TARGET [HOST]``.

Killing it cuts a server off from its callers, in the middle of what they say, and leaves the server's
own memory alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys


async def serve(port: int, target: int, host: str = "127.0.0.1") -> None:
    async def caller(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            answers, asks = await asyncio.open_connection("127.0.0.1", target)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_pass(reader, asks), _pass(answers, writer))

    server = await asyncio.start_server(caller, host, port)
    async with server:
        await server.serve_forever()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]))
