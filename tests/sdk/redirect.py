"""A name that resolves to a test hub's address, inside this process."""

import socket


def redirect(name, address):
    """Lets `name` resolve to `address`, and everything else as usual."""
    resolve = socket.getaddrinfo
    socket.getaddrinfo = lambda host, *rest, **options: resolve(
        address if host == name else host, *rest, **options
    )
