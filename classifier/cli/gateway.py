"""`classifier gateway`: other protocols in front of a running server, each a process of its own."""

from __future__ import annotations

from collections.abc import Callable

import click


def server_options(function: Callable[..., None]) -> Callable[..., None]:
    """Where the gRPC server is, and how to trust it: the same flags for every gateway."""
    told = "The gRPC server: HOST:PORT or unix:/PATH. [default: 127.0.0.1:50051]"
    for name, metavar, default, help_text in (
        ("server-key", "FILE", None, "PEM file of that certificate's key."),
        ("server-cert", "FILE", None, "PEM file of the certificate shown to the server (mTLS)."),
        ("server-ca", "FILE", None, "PEM file of the authority of the server's certificate: turns TLS on."),
        ("address", "ADDRESS", "127.0.0.1:50051", told),
    ):
        variable = f"CLASSIFIER_{name.upper().replace('-', '_')}"
        function = click.option(
            f"--{name}", metavar=metavar, envvar=variable, default=default, help=f"{help_text} [{variable}]"
        )(function)
    return function


@click.group(name="gateway")
def command() -> None:
    r"""Other protocols in front of a running `classifier serve`.

    \b
    classifier gateway http --listen 127.0.0.1:8080 --address 127.0.0.1:50051
    classifier gateway ext-proc --listen 127.0.0.1:50061 --routes routing.toml
    """


@command.command(name="http")
@click.option(
    "--listen",
    default="127.0.0.1:8080",
    metavar="ADDRESS",
    envvar="CLASSIFIER_HTTP_LISTEN",
    help="HOST:PORT or unix:/PATH; port 0 picks a free one. [CLASSIFIER_HTTP_LISTEN] [default: 127.0.0.1:8080]",
)
@server_options
@click.option(
    "--tokens",
    metavar="FILE",
    envvar="CLASSIFIER_TOKENS",
    help="The server's file of bearer tokens, checked here too, before a body is read. [CLASSIFIER_TOKENS]",
)
@click.option("--tls-cert", metavar="FILE", help="PEM file of the certificate chain shown to callers.")
@click.option("--tls-key", metavar="FILE", help="PEM file of its key.")
@click.option("--insecure", is_flag=True, help="Serve other machines without TLS or without tokens.")
@click.option(
    "--max-request-bytes", default=4 * 2**20, show_default=True, metavar="INT", help="Largest body, in bytes."
)
@click.option("--timeout-seconds", default=10.0, show_default=True, metavar="FLOAT", help="Deadline of one request.")
@click.option("--log-format", default="auto", type=click.Choice(["auto", "json", "text"]), help="As in serve.")
def http(log_format: str, **flags: str | bool | float | None) -> None:
    r"""Serves the calls as JSON over HTTP.

    POST /v1/classify, /v1/classify/batch, /v1/outcomes; GET /v1/info, /healthz. A caller's bearer token is passed on to
    the server. / is a page that explains the calls, /openapi.json the document. Prints `serving on ADDRESS` on stderr
    when it is ready. Needs the extra `http`.

    \b
    classifier gateway http --listen 127.0.0.1:8080 --address 127.0.0.1:50051
    curl -H 'Content-Type: application/json' -d '{"messages":[{"role":"user","content":"hi"}]}' \
        http://127.0.0.1:8080/v1/classify
    """
    from typing import Any, cast

    from classifier.gateways.http_server import HttpSettings, run
    from classifier.lifetime import leave
    from classifier.logs import configure_logging

    configure_logging(log_format, "info")
    given = {name: value for name, value in flags.items() if value is not None}
    leave(run(HttpSettings(**cast("dict[str, Any]", given))))


@command.command(name="ext-proc")
@click.option(
    "--listen",
    default="127.0.0.1:50061",
    metavar="ADDRESS",
    envvar="CLASSIFIER_EXT_PROC_LISTEN",
    help="HOST:PORT or unix:/PATH; port 0 picks a free one. [CLASSIFIER_EXT_PROC_LISTEN] [default: 127.0.0.1:50061]",
)
@server_options
@click.option(
    "--server-token-file", metavar="FILE", help="File of the bearer token shown to the server; read again on change."
)
@click.option(
    "--routes",
    metavar="FILE",
    envvar="CLASSIFIER_ROUTES",
    help="Routing table; read again on change. [CLASSIFIER_ROUTES]",
)
@click.option(
    "--fallback-tier",
    default="complex",
    show_default=True,
    type=click.Choice(["simple", "standard", "complex", "frontier"]),
    help="The tier where nothing comes back in time.",
)
@click.option(
    "--timeout-seconds", default=0.25, show_default=True, metavar="FLOAT", help="Deadline of one classification."
)
@click.option(
    "--model-header", default="x-ai-eg-model", show_default=True, metavar="NAME", help="Header for the route's model."
)
@click.option("--rewrite-body", is_flag=True, help="Write the route's model into the body too.")
@click.option("--insecure", is_flag=True, help="Serve other machines, without TLS.")
@click.option("--max-request-bytes", default=4 * 2**20, show_default=True, metavar="INT", help="Largest body to read.")
@click.option("--log-format", default="auto", type=click.Choice(["auto", "json", "text"]), help="As in serve.")
def ext_proc(log_format: str, fallback_tier: str, **flags: str | bool | float | None) -> None:
    r"""Serves Envoy's external processing.

    Reads chat bodies as OpenAI and Anthropic have them, sets x-classifier-tier, x-classifier-decision-id and, with a
    routing table, the header of the model. Prints `serving on ADDRESS` on stderr when it is ready. Envoy reaches it
    without TLS: keep it on loopback or a unix socket beside Envoy. Needs the extra `envoy`.

    \b
    classifier gateway ext-proc --listen 127.0.0.1:50061 --address 127.0.0.1:50051 --routes routing.toml
    """
    from typing import Any, cast

    from classifier.gateways.ext_proc import ExtProcSettings, run
    from classifier.lifetime import leave
    from classifier.logs import configure_logging
    from classifier.types import Tier

    configure_logging(log_format, "info")
    given = {name: value for name, value in flags.items() if value is not None}
    leave(run(ExtProcSettings(fallback_tier=Tier.parse(fallback_tier), **cast("dict[str, Any]", given))))
