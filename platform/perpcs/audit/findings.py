"""What an audit leaves behind: audit.json, read strictly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from perpcs.errors import DataError
from perpcs.evaluation.strict_json import decode, encode

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class LeakRow:
    """One attack on one way of sharing."""

    shared: str
    """What the attacker holds: `adapter` (all pieces), `piece <projection>` alone, `ratio <rho>`: a part of the pieces,
    or `control`: another sharer's adapter instead, which must give nothing away."""
    attack: str
    pieces: float
    """Pieces of a sharer that the attacker holds, mean over sharers."""
    auc: float
    auc_low: float | None
    auc_high: float | None
    tpr: float
    """True-positive rate at a false-positive rate of 1 %."""
    tpr_low: float | None
    tpr_high: float | None


@dataclass(frozen=True)
class Audit:
    """The whole of audit.json."""

    experiment: str
    seed: int
    sharers: int
    members: int
    """Items that were trained on, over all sharers."""
    others: int
    """Items of the same sharers that were not."""
    source: str
    """Where the latter come from: held out, or made afresh from a synthetic user's known taste."""
    references: int
    """Other sharers against whom the calibrated attack measures."""
    pool_version: int
    fingerprint: str
    settings: Mapping[str, str]
    rows: tuple[LeakRow, ...]


def to_text(audit: Audit) -> str:
    """The JSON of audit.json."""
    return json.dumps({"version": SCHEMA_VERSION, **encode(audit)}, indent=1, ensure_ascii=False) + "\n"


def from_text(text: str, *, where: str) -> Audit:
    """An audit; DataError for another version, missing or unknown keys, wrong types."""
    try:
        data: Any = json.loads(text)
    except ValueError as error:
        raise DataError(f"{where}: cannot be read as JSON ({str(error).splitlines()[0]})") from None
    version = data.get("version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{where}: version is {version!r}, this program reads {SCHEMA_VERSION}; run the audit again"
        )
    return decode(Audit, {key: value for key, value in data.items() if key != "version"}, where)
