"""`classifier health`: whether a server serves, for probes."""

from __future__ import annotations

import click

from classifier.cli._json import answer, json_option


@click.command(name="health")
@click.argument("address", default="127.0.0.1:50051")
@click.option(
    "--timeout",
    default=2.0,
    show_default=True,
    type=click.FloatRange(0, 3600, min_open=True),
    metavar="SECONDS",
    help="The longest to wait.",
)
@json_option
def command(*, address: str, timeout: float, as_json: bool) -> None:
    r"""Exits 0 where the server at ADDRESS says SERVING, else 1.

    It speaks no TLS: give a server behind TLS a Unix socket beside its port, and ask that.

    \b
    classifier health 127.0.0.1:50051
    classifier health unix:/tmp/classifier.sock
    """
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from classifier import wire
    from classifier.addresses import check_address
    from classifier.channels import NO_PROXY
    from classifier.errors import ServerUnreachable

    check_address(address, "address")
    with grpc.insecure_channel(address, [NO_PROXY]) as channel:
        try:
            asked = health_pb2.HealthCheckRequest(service=wire.SERVICE)
            status = health_pb2_grpc.HealthStub(channel).Check(asked, timeout=timeout).status
        except grpc.RpcError as error:
            answer({"address": address, "status": "UNREACHABLE"}, "", as_json=as_json)
            raise ServerUnreachable(
                f"{address}: no answer ({error.code().name}); start the server, or ask the Unix socket of one with TLS"
            ) from None
    name = health_pb2.HealthCheckResponse.ServingStatus.Name(status)
    serves = status == health_pb2.HealthCheckResponse.SERVING
    answer({"address": address, "status": name}, name if serves else "", as_json=as_json)
    if not serves:
        raise ServerUnreachable(f"{address}: {name}")
