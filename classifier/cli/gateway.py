"""`classifier gateway`: other protocols in front of a running server, each a process of its own."""

from __future__ import annotations

from collections.abc import Callable

import click


def server_options(function: Callable[..., None]) -> Callable[..., None]:
    """Where the gRPC server is, and how to trust it: the same flags for every gateway."""
    prefix = "CLASSIFIER_SERVER_"
    for flag, name, metavar, help_text in (
        ("--server-key", "server_key", "FILE", "PEM file of that certificate's key."),
        ("--server-cert", "server_cert", "FILE", "PEM file of the certificate shown to the server (mTLS)."),
        ("--server-ca", "server_ca", "FILE", "PEM file of the authority of the server's certificate: turns TLS on."),
        ("--address", "address", "ADDRESS", "The gRPC server: HOST:PORT or unix:/PATH. [default: 127.0.0.1:50051]"),
    ):
        variable = "CLASSIFIER_ADDRESS" if name == "address" else prefix + name.removeprefix("server_").upper()
        default = "127.0.0.1:50051" if name == "address" else None
        option = click.option(
            flag, name, metavar=metavar, envvar=variable, default=default, help=f"{help_text} [{variable}]"
        )
        function = option(function)
    return function


@click.group(name="gateway")
def command() -> None:
    r"""Other protocols in front of a running `classifier serve`.

    \b
    classifier gateway http --listen 127.0.0.1:8080 --address 127.0.0.1:50051
    """
