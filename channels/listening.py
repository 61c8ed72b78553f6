"""An HTTP server on its port."""

from __future__ import annotations

import ssl

from aiohttp import web

from channels.errors import OdaError


async def listen(
    runner: web.BaseRunner, host: str, port: int, context: ssl.SSLContext | None = None
) -> str:
    """Serve from now on; the URL. port: 0 picks a free one. Raises OdaError `port-in-use`."""
    try:
        await web.TCPSite(runner, host, port, ssl_context=context).start()
    except OSError as error:
        raise OdaError(
            "port-in-use", f"Port {port} on {host} can't be used: {error.strerror}."
        ) from error
    host, port = runner.addresses[0][:2]
    return f"http{'s' if context else ''}://{f'[{host}]' if ':' in host else host}:{port}"
