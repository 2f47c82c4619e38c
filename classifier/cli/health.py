"""`classifier health`: whether a server serves, for probes."""

from __future__ import annotations

import click


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
def command(address: str, timeout: float) -> None:
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
            raise ServerUnreachable(f"{address}: no answer ({error.code().name})") from None
    name = health_pb2.HealthCheckResponse.ServingStatus.Name(status)
    if status != health_pb2.HealthCheckResponse.SERVING:
        raise ServerUnreachable(f"{address}: {name}")
    click.echo(name)
