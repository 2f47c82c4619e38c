"""policy.json to policies and back: thresholds bound by hash to the model and the calibration that they belong to.

Knows nothing of folders or checksums of files: it takes and returns parsed JSON.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from classifier.errors import BundleCorrupt
from classifier.policy import Guarantee, Policy

SCHEMA_VERSION = 1


def policies_to_json(
    policies: Iterable[Policy], default: str, *, model_sha256: str, calibration_revision: str
) -> dict[str, Any]:
    """What policy.json holds. The two hashes say to which bundle the thresholds belong.

    Raises:
        ValueError: `default` is none of the policies, or two share a name.
    """
    listed = list(policies)
    names = [policy.name for policy in listed]
    if default not in names or len(set(names)) != len(names):
        raise ValueError(f"policies {names} and default {default!r} do not fit together")
    return {
        "schema_version": SCHEMA_VERSION,
        "default": default,
        "model_sha256": model_sha256,
        "calibration_revision": calibration_revision,
        "policies": [policy_to_json(policy) for policy in listed],
    }


def policy_to_json(policy: Policy) -> dict[str, Any]:
    """One of the policies of policy.json."""
    values = {name: getattr(policy, name) for name in Policy.__slots__}
    top = policy.top_tier_guarantee
    return values | {
        "guarantee": asdict(policy.guarantee),
        "top_tier_guarantee": None if top is None else asdict(top),
        "tier_shares": list(policy.tier_shares),
        "exempt_labels": list(policy.exempt_labels),
        "group_thresholds": dict(policy.group_thresholds),
    }


def policies_from_json(data: Any, *, model_sha256: str, calibration_revision: str) -> tuple[dict[str, Policy], str]:
    """The policies of a parsed policy.json by name, and the default's name.

    Args:
        data: policy.json, parsed.
        model_sha256: of the model.onnx beside it.
        calibration_revision: of the calibration.json beside it.

    Raises:
        BundleCorrupt: another schema, thresholds that were fitted on another model or another calibration, or a policy
            that is out of range; the message names it.
    """
    if not isinstance(data, dict) or data.get("schema_version") != SCHEMA_VERSION:
        found = data.get("schema_version") if isinstance(data, dict) else type(data).__name__
        raise BundleCorrupt(
            f"policy.json has schema version {reprlib.repr(found)}, this package reads {SCHEMA_VERSION}; use the "
            "package version that wrote the bundle, or recalibrate"
        )
    for name, expected, file in (
        ("model_sha256", model_sha256, "model.onnx"),
        ("calibration_revision", calibration_revision, "calibration.json"),
    ):
        if data.get(name) != expected:
            raise BundleCorrupt(
                f"policy.json was fitted for {name} {reprlib.repr(data.get(name))}, this bundle's {file} has "
                f"{expected!r}: its thresholds promise nothing here; run 'python -m training calibrate' on this bundle"
            )
    try:
        policies = [policy_from_json(entry) for entry in data["policies"]]
        default = data["default"]
    except KeyError as error:
        raise BundleCorrupt(f"policy.json has no {error.args[0]!r}; recalibrate") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise BundleCorrupt(f"policy.json: {error}; recalibrate") from error
    by_name = {policy.name: policy for policy in policies}
    if default not in by_name or len(by_name) != len(policies):
        raise BundleCorrupt(
            f"policy.json: the default {reprlib.repr(default)} is none of {reprlib.repr(sorted(by_name))}, or a "
            "name stands twice; recalibrate"
        )
    return by_name, default


def policy_from_json(entry: Mapping[str, Any]) -> Policy:
    """The policy that `policy_to_json` wrote.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: it is none.
    """
    top = entry.get("top_tier_guarantee")
    return Policy(
        **{
            **entry,
            "guarantee": Guarantee(**entry["guarantee"]),
            "top_tier_guarantee": None if top is None else Guarantee(**top),
            "tier_shares": tuple(entry.get("tier_shares", ())),
            "exempt_labels": tuple(entry.get("exempt_labels", ())),
        }
    )
