"""Device meshes and DTensors of plain torch: their axes as a parallel layout, their placements as dims."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable
from typing import Any

from dumper.adapters.protocol import Parallel


def is_dtensor(value: object) -> bool:
    """Whether a value is a ``torch.distributed.tensor.DTensor``; imports nothing."""
    module = sys.modules.get("torch.distributed.tensor")
    kind = getattr(module, "DTensor", None)
    return kind is not None and isinstance(value, kind)


def local_shard(value: Any, dims: str | None) -> tuple[Any, str | None, Parallel]:
    """Of a DTensor: what this rank holds, its dims, and the axes of its mesh. Starts no collective.

    ``dims`` that are given name the dimensions (``t h``); the placements are added to them, except for axes that they
    name already. Without, dimensions are called ``d0``, ``d1``, ….
    """
    axes = axis_names(value.device_mesh)
    sizes = [int(size) for size in value.device_mesh.shape]
    placed = [
        (axis, placement) for axis, size, placement in zip(axes, sizes, value.placements, strict=True) if size > 1
    ]
    local = value._local_tensor
    return local, with_placements(dims, local.dim(), placed), mesh_axes([value.device_mesh])


def axis_names(mesh: Any) -> list[str]:
    """The names of a mesh's dimensions; ``mesh0``, ``mesh1``, … where they have none."""
    return list(mesh.mesh_dim_names or (f"mesh{index}" for index in range(mesh.ndim)))


def mesh_axes(meshes: Iterable[Any]) -> Parallel:
    """The place of this rank on every axis of the meshes that it belongs to; the first of a name wins."""
    axes: Parallel = {}
    for mesh in meshes:
        place = mesh.get_coordinate()
        if place is not None:
            for axis, at, size in zip(axis_names(mesh), place, mesh.shape, strict=True):
                axes.setdefault(axis, (int(at), int(size)))
    return axes


def existing_meshes() -> list[Any]:
    """Every ``DeviceMesh`` with named dimensions that the process has made, largest first. Takes milliseconds."""
    module = sys.modules.get("torch.distributed.device_mesh")
    kind = getattr(module, "DeviceMesh", None)
    if kind is None:
        return []
    found = [thing for thing in gc.get_objects() if type(thing) is kind and thing.mesh_dim_names]
    return sorted(found, key=lambda mesh: -len(mesh.mesh_dim_names))


def with_placements(dims: str | None, rank: int, placed: Iterable[tuple[str, Any]]) -> str | None:
    """Dims (``docs/dims.md``) that say how a local tensor of ``rank`` dimensions is part of the whole.

    ``placed``: axes in the order of the mesh, each with its ``Shard``, ``Replicate`` or ``Partial``. None, or ``dims``
    as they are, where dims cannot say it: a reduction that is no sum, or names that are not one for each dimension.
    """
    text, _, declarations = (dims or "").partition("#")
    names = text.split() or [f"d{index}" for index in range(rank)]
    if len(names) != rank:
        return dims
    splits: list[list[str]] = [[] for _ in names]
    inner: list[list[str]] = [[] for _ in names]
    declared = declarations.split()
    for axis, placement in placed:
        if _names(dims or "", axis):
            continue
        if placement.is_replicate():
            declared.append(f"{axis}:replicated")
        elif placement.is_partial():
            if not names or placement.reduce_op != "sum":
                return dims
            splits[-1].append(f"{axis}:partial")
        elif type(placement).__name__ == "_StridedShard":
            # Split after the axes that come later in the mesh (fully_shard over tensor parallelism).
            inner[placement.dim].append(axis)
        elif placement.is_shard():
            splits[placement.dim].append(axis)
        else:
            return dims
    parts = [_split(name, first + last) for name, first, last in zip(names, splits, inner, strict=True)]
    return " ".join(parts) + (f" # {' '.join(declared)}" if declared else "") or dims


def dims_of_parameter(parameter: Any, dims: str | None) -> str | None:
    """Dims of a parameter that Megatron-core has marked as split over tensor parallelism, with what ``dims`` declare of
    other axes; of any other ``dims`` as they are.

    Not of one that is split in several strides, or of an expert, whose ranks have another axis.
    """
    at = getattr(parameter, "partition_dim", -1)
    marked = (
        getattr(parameter, "tensor_model_parallel", False) is True and getattr(parameter, "allreduce", True) is True
    )
    if not marked or getattr(parameter, "partition_stride", 1) != 1 or not 0 <= at < parameter.dim():
        return dims
    names = [f"d{index}[tp]" if index == at else f"d{index}" for index in range(parameter.dim())]
    declared = [one for one in (dims or "").partition("#")[2].split() if not one.startswith("tp:")]
    return " ".join(names) + (f" # {' '.join(declared)}" if declared else "")


def _split(name: str, axes: list[str]) -> str:
    if not axes:
        return name
    base, bracket, given = name.partition("[")
    return f"{base}[{','.join([*([given.rstrip(']')] if bracket else []), *axes])}]"


def _names(dims: str, axis: str) -> bool:
    """Whether dims say something of an axis already."""
    separated = dims
    for mark in "[],:#+=":
        separated = separated.replace(mark, " ")
    return axis in separated.split()
