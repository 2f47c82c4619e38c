"""What both gateways draw in tests of restricted requests: routing tables, and servers that decide, fail or err."""

from __future__ import annotations

from typing import Any

import grpc
from hypothesis import strategies as st

from classifier.routing import Route, RoutingTable
from classifier.types import TIERS, Tier

tables = st.fixed_dictionaries(dict.fromkeys(TIERS, st.lists(st.booleans(), max_size=2))).map(
    lambda found: RoutingTable(
        {
            tier: tuple(
                Route(tier, f"{tier.label}-{i}{'-home' if home else ''}", 1.0, on_premises=home)
                for i, home in enumerate(homes)
            )
            for tier, homes in found.items()
        }
    )
)
"""Tables of up to two routes a tier, on premises (`-home`) or not."""
CODES = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.INTERNAL]
comings = st.sampled_from([*Tier, *CODES, KeyError("x")])
"""What comes of a call: a decision's tier, a status, or an error in our own code."""


def tier_of(came: Any) -> Tier:
    """The tier that came; what is none is raised as gRPC, or as it is."""
    if isinstance(came, grpc.StatusCode):
        raise grpc.aio.AioRpcError(came, grpc.aio.Metadata(), grpc.aio.Metadata())
    if isinstance(came, Exception):
        raise came
    return Tier(came)
