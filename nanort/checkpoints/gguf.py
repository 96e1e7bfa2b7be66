"""GGUF files as Hugging Face has them: config, names, and rows in the order that its rope expects."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nanort.checkpoints.gguf_words import FREQUENCIES, Words
from nanort.errors import FileError, TruncatedFileError, WeightDtypeError, WeightShapeError

MOST = 1 << 14
"""Fields, and tensors, that a file may have; the largest models have a tenth of it."""


def demo_package(name: str) -> Any:
    """A module of the extra ``demo``, imported now; where it is absent, an error that says how to get it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:
            raise
        raise FileError(f"the package {error.name} is not installed: pip install 'nanort[demo]'") from error


class GGUFFile:
    """A GGUF file, mapped: its metadata, ``config`` and ``names`` at once, tensors on demand.

    ``metadata`` is the file's own; ``config`` has the keys of config.json, ``names`` a shape and dtype for each tensor,
    those of a layer's experts stacked.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        reader = _reader(path)
        try:
            self.metadata: dict[str, Any] = {key: _contents(field) for key, field in reader.fields.items()}
        except ValueError as error:
            raise TruncatedFileError(f"{path} holds text that is not UTF-8 ({error}): download it again") from error
        words = Words(path, self.metadata)
        self._swapped = words.architecture == "llama"
        _refuse_overlaps(reader, path)
        frequencies = {tensor.name: tensor for tensor in reader.tensors if tensor.name in FREQUENCIES}
        self._tensors = {words.name(tensor.name): tensor for tensor in reader.tensors if tensor.name not in FREQUENCIES}
        self.names = {name: (_shape(name, tensor), _dtype(tensor, path)) for name, tensor in self._tensors.items()}
        shapes = {name: shape for name, (shape, _) in self.names.items()}
        self.config = words.config(shapes, {name: _figures(tensor, path) for name, tensor in frequencies.items()})

    def read(self, name: str) -> torch.Tensor:
        """The tensor ``name``, dequantised (quantised kinds to float32), its rows in the order of ``rotate_half``."""
        tensor = self._tensors[name]
        if tensor.data.dtype == np.uint8:
            weight = torch.from_numpy(demo_package("gguf").dequantize(tensor.data, tensor.tensor_type))
        else:
            weight = torch.from_numpy(np.array(tensor.data))
        for module, key in ((".q_proj.", "num_attention_heads"), (".k_proj.", "num_key_value_heads")):
            if module in name and self._swapped:
                heads = self.config[key]
                if not weight.numel() or not weight.ndim or weight.shape[0] % (2 * heads):
                    raise WeightShapeError(
                        f"{self.path} has {name} as {tuple(weight.shape)}, not in {heads} even heads"
                    )
                return _rotate_half_rows(weight, heads)
        return weight.view(self.names[name][0])


def _reader(path: Path) -> Any:
    """The gguf package's reader of ``path``, or a TruncatedFileError."""
    base, kinds = demo_package("gguf").GGUFReader, demo_package("gguf").GGUFValueType

    class Bounded(base):  # type: ignore[misc, valid-type]  # the base is imported late
        def _build_fields(self, offset: int, count: int) -> int:
            if self.byte_order == "S":
                raise FileError(
                    f"{path} was written for a machine of the other byte order: convert it again on this one"
                )
            return int(super()._build_fields(offset, _few(count, "fields")))

        def _build_tensor_info(self, offset: int, count: int) -> tuple[int, list[Any]]:
            found: tuple[int, list[Any]] = super()._build_tensor_info(offset, _few(count, "tensors"))
            return found

        # An array is one part, not one for each of its items, which would take hundreds of bytes for each byte.
        def _get_field_parts(self, offset: int, kind: int) -> tuple[int, list[Any], list[int], list[Any]]:
            if kind != kinds.ARRAY:
                one: tuple[int, list[Any], list[int], list[Any]] = super()._get_field_parts(offset, kind)
                return one
            inner, count = self._get(offset, np.uint32), self._get(offset + 4, np.uint64)
            begin = end = offset + 12
            if inner[0] == kinds.STRING:
                for _ in range(int(count[0])):
                    end += 8 + _length(self.data, end)
                items = self._get(begin, np.uint8, end - begin)
            elif inner[0] in self.gguf_scalar_to_np:
                items = self._get(begin, self.gguf_scalar_to_np[inner[0]], count[0])
            else:
                raise ValueError(f"at byte {offset} it has an array of the type {inner[0]}")
            return 12 + int(items.nbytes), [inner, count, items], [2], [kinds.ARRAY, kinds(inner[0])]

        # Past the file's end numpy slices come back short instead of failing, so a damaged count would loop for hours.
        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            part = super()._get(offset, dtype, count, override_order)
            if part.size < int(count):
                raise IndexError(f"it ends at byte {self.data.size}, before byte {offset} + {count} x {part.itemsize}")
            return part

    try:
        return Bounded(path)
    except FileError:
        raise
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise TruncatedFileError(f"{path} is not a whole GGUF file ({error}): download it again") from error


def _few(count: int, what: str) -> int:
    """``count``, unless no model has so many: each takes a hundred times the memory that it takes of the file."""
    if count > MOST:
        raise ValueError(f"it announces {count} {what}, of which {MOST} are the most")
    return int(count)


def _length(data: Any, at: int) -> int:
    """The length that a string at that byte states."""
    if at + 8 > data.size:
        raise IndexError(f"it ends at byte {data.size}, within a list of texts")
    return int.from_bytes(data[at : at + 8].tobytes(), sys.byteorder)


def _contents(field: Any) -> Any:
    """What a field of the metadata holds, as plain Python values."""
    names = [kind.name for kind in field.types]
    if names[0] != "ARRAY":
        return field.contents()
    if names[1] != "STRING":
        return field.parts[field.data[0]].tolist()
    texts, block, at = [], field.parts[field.data[0]].tobytes(), 0
    while at < len(block):
        begin = at + 8
        at = begin + int.from_bytes(block[at:begin], sys.byteorder)
        texts.append(str(block[begin:at], "utf-8"))
    return texts


def _refuse_overlaps(reader: Any, path: Path) -> None:
    end = reader.data_offset
    for tensor in sorted(reader.tensors, key=lambda tensor: (tensor.data_offset, tensor.n_bytes)):
        if not tensor.n_elements:
            raise TruncatedFileError(f"{path} has {tensor.name} without a single number: convert it again")
        if tensor.data_offset < end:
            raise TruncatedFileError(
                f"{path} places {tensor.name} where the head or another tensor lies: download it again"
            )
        end = tensor.data_offset + tensor.n_bytes


def _shape(name: str, tensor: Any) -> tuple[int, ...]:
    """The tensor's shape in a Hugging Face checkpoint: there, a gate of one row keeps both dimensions."""
    shape = tuple(reversed(tensor.shape.tolist()))
    return (1, *shape) if name.endswith(".shared_expert_gate.weight") and len(shape) == 1 else shape


def _figures(tensor: Any, path: Path) -> list[float]:
    """What a small tensor of float32 holds."""
    if tensor.data.dtype != np.float32 or tensor.data.ndim != 1:
        raise WeightDtypeError(f"{path} has {tensor.name} as {tensor.tensor_type.name}, not as a row of float32")
    figures: list[float] = tensor.data.tolist()
    return figures


def _dtype(tensor: Any, path: Path) -> torch.dtype:
    """The dtype that reading ``tensor`` gives, known without reading it."""
    if tensor.data.dtype != np.uint8:
        dtype: torch.dtype = getattr(torch, tensor.data.dtype.name)
        return dtype
    gguf = demo_package("gguf")
    _, block_bytes = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
    try:
        gguf.dequantize(np.zeros((1, block_bytes), np.uint8), tensor.tensor_type)
    except NotImplementedError as error:
        raise WeightDtypeError(f"{path} holds {tensor.name} as {tensor.tensor_type.name}: {error}") from error
    return torch.float32


def _rotate_half_rows(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Each head's rows from GGUF's order, where rope pairs neighbours, to the one where pairs are half a head apart."""
    return weight.reshape(heads, -1, 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)
