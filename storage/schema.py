"""What a pool's tables look like: their names, columns and the description that all of them share.

P projections; r rank; d_in, d_out sizes of a projection; m sketch size.
"""

from __future__ import annotations

import dataclasses
import json
import re
import uuid
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa

from perpcs.errors import MismatchError, StoreError
from perpcs.records import PoolSpec, Projection

SCHEMA_VERSION = 2
"""1: the first. 2: the log may hold `bar` events (storage/migrate.py brings older pools here)."""
Dtype = Literal["float32", "float16"]
HEADER = b"perpcs.pool"
"""Key in the sharers table's schema metadata: there, the description is created by the same atomic commit as
the table.
"""


@dataclass(frozen=True)
class Header:
    """Identity and shape of a pool; fixed at its creation."""

    id: str
    dtype: Dtype
    spec: PoolSpec
    schema_version: int = SCHEMA_VERSION

    @classmethod
    def new(cls, spec: PoolSpec, dtype: Dtype) -> Header:
        """A header for a new pool, after checking that the description can be stored."""
        if dtype not in get_args(Dtype):
            raise StoreError(f"dtype {dtype!r}: a pool is stored as float32 or float16")
        groups(spec)
        return cls(uuid.uuid4().hex, dtype, spec)

    def to_json(self) -> bytes:
        """Compact UTF-8 JSON."""
        return json.dumps(dataclasses.asdict(self), separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, data: bytes, where: str, *, oldest: int = SCHEMA_VERSION) -> Header:
        """The inverse of `to_json`.

        Raises:
            MismatchError: written with a newer schema version, or one older than `oldest`.
            StoreError: not a pool's header.
        """
        try:
            value = json.loads(data)
            if not oldest <= value["schema_version"] <= SCHEMA_VERSION:
                raise MismatchError(f"{where}: {wrong_version(value['schema_version'], where)}")
            spec = dict(value.pop("spec"))
            spec["projections"] = tuple(Projection(**p) for p in spec["projections"])
            return cls(spec=PoolSpec(**spec), **value)
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{where}: the pool's description is damaged ({error})") from error


def wrong_version(found: int, where: str) -> str:
    """What to do about a pool that this release does not read."""
    if found > SCHEMA_VERSION:
        return (
            f"the pool has schema version {found}, this release reads up to {SCHEMA_VERSION}; use a newer one"
        )
    return (
        f"the pool has schema version {found}, this release needs {SCHEMA_VERSION}; "
        f"run python -m jobs.pool migrate {where}"
    )


@dataclass(frozen=True)
class Group:
    """One pieces table: the projections of one kind, whose shapes are equal, by layer."""

    table: str
    d_in: int
    d_out: int
    layers: tuple[int, ...]
    names: tuple[str, ...]


def groups(spec: PoolSpec) -> tuple[Group, ...]:
    """The pieces tables of a pool, in the order in which their kinds first appear.

    A kind whose projections differ in shape gets one table per shape.

    Raises:
        StoreError: no projections, a name twice, or two projections of one kind in one layer.
    """
    if not spec.projections:
        raise StoreError("a pool needs at least one projection")
    buckets: dict[tuple[str, int, int], list[Projection]] = {}
    for projection in spec.projections:
        buckets.setdefault((projection.kind, projection.d_in, projection.d_out), []).append(projection)
    taken: set[str] = set()
    found = [_group(key, members, taken) for key, members in buckets.items()]
    names = [name for group in found for name in group.names]
    if len(set(names)) != len(names):
        raise StoreError("a pool's projections must have different names")
    return tuple(found)


def _group(key: tuple[str, int, int], members: list[Projection], taken: set[str]) -> Group:
    kind, d_in, d_out = key
    layers = tuple(p.layer for p in members)
    if len(set(layers)) != len(layers):
        raise StoreError(
            f"projection kind {kind!r}: more than one in the same layer; give them different kinds"
        )
    stem = "pieces_" + (re.sub(r"[^0-9a-zA-Z]+", "_", kind).strip("_") or "root")
    candidates = (stem, f"{stem}_{d_in}x{d_out}", *(f"{stem}_{n}" for n in range(2, 1000)))
    table = next(name for name in candidates if name not in taken)
    taken.add(table)
    return Group(table, d_in, d_out, layers, tuple(p.name for p in members))


def pieces_schema(group: Group, header: Header) -> pa.Schema:
    """Columns of a pieces table: one row is one sharer's piece at one layer."""
    spec = header.spec
    number = pa.float16() if header.dtype == "float16" else pa.float32()
    fields = [
        ("user_id", pa.string()),
        ("attempt", pa.int64()),
        ("layer", pa.int32()),
        ("started", pa.int64()),
        ("norm", pa.float64()),
        ("checksum", pa.uint64()),
        ("a", pa.list_(number, spec.rank * group.d_in)),
        ("b", pa.list_(number, group.d_out * spec.rank)),
    ]
    if spec.gates:
        fields.append(("gate", pa.list_(number, group.d_in)))
    if spec.sketch:
        fields.append(("gradient_key", pa.list_(number, spec.sketch**2)))
    return pa.schema(fields)


def sharers_schema(header: Header) -> pa.Schema:
    """Columns of the sharers table: a log of events, one of `storage.ledger.EVENTS` per row."""
    fields: list[tuple[str, Any]] = [
        ("event", pa.string()),
        ("user_id", pa.string()),
        ("tenant", pa.string()),
        ("attempt", pa.int64()),
        ("seen", pa.int64()),
        ("digest", pa.binary(16)),
        ("items", pa.int64()),
        ("steps", pa.int64()),
        ("loss", pa.float64()),
        ("seed", pa.int64()),
        ("at", pa.int64()),
        ("since", pa.int64()),
        ("until", pa.int64()),
        ("sort_id", pa.string()),
        ("sort_n", pa.int64()),
    ]
    if header.spec.history_dim:
        fields.append(("history_key", pa.list_(pa.float32(), header.spec.history_dim)))
    return pa.schema(fields, metadata={HEADER: header.to_json()})


def require_same(header: Header, spec: PoolSpec, dtype: Dtype, where: str) -> None:
    """Check that a pool is the one that the caller expects.

    Raises:
        MismatchError: names the first field that differs and both values.
    """
    if header.dtype != dtype:
        raise MismatchError(f"{where}: the pool's dtype is {header.dtype}, not {dtype}; use another folder")
    for field in dataclasses.fields(PoolSpec):
        have, want = getattr(header.spec, field.name), getattr(spec, field.name)
        if have != want:
            have, want = _first_difference(have, want) if field.name == "projections" else (have, want)
            raise MismatchError(
                f"{where}: the pool's {field.name} is {have!r}, not {want!r}; "
                "use another folder or the same setting"
            )


def _first_difference(have: tuple[Projection, ...], want: tuple[Projection, ...]) -> tuple[Any, Any]:
    for left, right in zip(have, want, strict=False):
        if left != right:
            return left, right
    return f"{len(have)} projections", f"{len(want)} projections"


def numpy_dtype(header: Header) -> np.dtype:
    """The stored type of factors, gates and gradient keys."""
    return np.dtype(header.dtype)
