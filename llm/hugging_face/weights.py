"""Weights of a Hugging Face directory, one parameter at a time.

All names and shapes are compared with config.json before the first number is read, so that a training that begins from
them does not fail in its middle. Beside the parameter asked for, one tensor of a file is held.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llm.accounting import parameter_shapes
from llm.errors import HuggingFaceWeightsError
from llm.hugging_face.configuration import Description, read_config, read_json_object
from llm.hugging_face.tensors import EMBEDDING, OUTPUT, Piece, pieces

WHOLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_FLOATS = ("F64", "F32", "F16", "BF16")
_ROWS = 4096
"""Rows of two embeddings that are compared at a time."""


class HuggingFaceWeights:
    """Gives any parameter of our model out of a Hugging Face directory.

    Args:
        directory: With config.json, and model.safetensors or the files that model.safetensors.index.json names.

    Raises:
        HuggingFaceConfigError: The model is not one that this program computes.
        HuggingFaceWeightsError: Files are missing or torn, or their tensors are not those of the model.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.description: Description = read_config(directory)
        self.config = self.description.config
        self._shapes = parameter_shapes(self.config)
        self._files = _open_files(directory)
        self._places = self._without_prefix(_places(directory, self._files))
        self._pieces: dict[str, list[Piece]] = {}
        for piece in self._in_nearest_layout():
            self._pieces.setdefault(piece.parameter, []).append(piece)
        self._check_names()
        self._check_tensors()

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the weights lie in."""
        return tuple(self.directory / name for name in self._files)

    @property
    def names(self) -> tuple[str, ...]:
        """Every parameter of the model, in the order of `llm.accounting.parameter_shapes`."""
        return tuple(self._shapes)

    def read(self, name: str) -> Tensor:
        """One parameter. fp32, on the CPU; the file's numbers, exactly where the family stores them as they are.

        Raises:
            KeyError: The model has no such parameter.
            HuggingFaceWeightsError: The file cannot be read any more.
        """
        parameter = torch.empty(self._shapes[name], dtype=torch.float32, device="cpu")
        for piece in self._pieces[name]:
            piece.fill(parameter, self._tensor(piece.theirs))
        return parameter

    def _tensor(self, theirs: str) -> Tensor:
        file, stored = self._places[theirs]
        try:
            tensor: Tensor = self._files[file].get_tensor(stored)
        except (SafetensorError, OSError) as error:
            raise HuggingFaceWeightsError(
                f"{self.directory / file} no longer gives the tensor {stored} ({error}): the file was changed after it "
                "was opened. Leave it alone while it is read, and start again."
            ) from error
        return tensor

    def _without_prefix(self, places: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
        """Names as the family has them: files saved from a model without its head lack the prefix."""
        names = self.description.family.names
        kept = {name: place for name, place in places.items() if not name.endswith(names.derived)}
        if any(name.startswith(names.prefix) for name in kept):
            return kept
        return {name if name == OUTPUT else names.prefix + name: place for name, place in kept.items()}

    def _in_nearest_layout(self) -> list[Piece]:
        """The pieces of that layout of the family of which the files lack least."""
        family = self.description.family
        layouts = [pieces(names, self.config) for names in (family.names, *family.also_read)]
        return min(layouts, key=lambda layout: sum(piece.theirs not in self._places for piece in layout) / len(layout))

    def _check_names(self) -> None:
        expected = {piece.theirs for parts in self._pieces.values() for piece in parts}
        missing = [name for name in expected if name not in self._places]
        extra = [name for name in self._places if name not in expected]
        if extra == [OUTPUT] and self.config.tie_word_embeddings:
            self._check_tied()
            extra = []
        if missing or extra:
            told = [f"{kind} {_some(names)}" for kind, names in (("lack", missing), ("besides hold", extra)) if names]
            raise HuggingFaceWeightsError(
                f"the weights in {self.directory} {' and '.join(told)}, and config.json describes a "
                f"{self.description.family.model_type} model of {self.config.num_hidden_layers} layers with exactly "
                f"{len(expected)} tensors. Check that config.json belongs to these weights, and that all files are "
                "there."
            )

    def _check_tied(self) -> None:
        """Some files spell out the output projection although it is the embedding; it must then be that."""
        embedding = next(piece.theirs for piece in self._pieces[EMBEDDING])
        one, other = (self._slice(name) for name in (embedding, OUTPUT))
        rows = one.get_shape()[0]
        if one.get_shape() == other.get_shape() and all(
            torch.equal(one[start : start + _ROWS], other[start : start + _ROWS]) for start in range(0, rows, _ROWS)
        ):
            return
        raise HuggingFaceWeightsError(
            f"the weights in {self.directory} hold an {OUTPUT} of their own, and config.json has tie_word_embeddings "
            "true, by which it is the embedding: which was meant is unknown. Set tie_word_embeddings to false in a "
            "copy of config.json to use both, or delete the tensor."
        )

    def _check_tensors(self) -> None:
        for piece in (piece for parts in self._pieces.values() for piece in parts):
            stored = self._slice(piece.theirs)
            shape, dtype = tuple(stored.get_shape()), stored.get_dtype()
            where = f"{self.directory / self._places[piece.theirs][0]}: tensor {self._places[piece.theirs][1]}"
            if shape != piece.shape:
                raise HuggingFaceWeightsError(
                    f"{where} has the shape {shape}, and config.json gives it {piece.shape}. "
                    "Check that config.json belongs to these weights."
                )
            if dtype not in _FLOATS:
                raise HuggingFaceWeightsError(
                    f"{where} is stored as {dtype}, and weights are read from {', '.join(_FLOATS)}: the model was "
                    "quantised. Take the version that was not, or load it with transformers and call dequantize()."
                )

    def _slice(self, theirs: str) -> Any:
        file, stored = self._places[theirs]
        return self._files[file].get_slice(stored)


def _open_files(directory: Path) -> dict[str, Any]:
    """Every file of weights by its name, mapped and not read."""
    names = [WHOLE_FILE] if (directory / WHOLE_FILE).exists() else sorted(set(_index(directory).values()))
    files: dict[str, Any] = {}
    for name in names:
        path = directory / name
        try:
            files[name] = safe_open(str(path), framework="pt", device="cpu")
        except FileNotFoundError as error:
            raise HuggingFaceWeightsError(
                f"{path} is missing, and {INDEX_FILE} names it. Download it again: the directory is not whole."
            ) from error
        except (SafetensorError, OSError) as error:
            raise HuggingFaceWeightsError(
                f"{path} is not a whole safetensors file ({error}): it was cut off or damaged. Download it again."
            ) from error
    return files


def _places(directory: Path, files: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """File of each tensor, and its name there, as the files themselves say; an index must agree with them."""
    places: dict[str, tuple[str, str]] = {}
    for file, opened in files.items():
        for name in opened.keys():  # noqa: SIM118 - not a dict
            if name in places:
                raise HuggingFaceWeightsError(
                    f"{directory}: tensor {name} is in {places[name][0]} and in {file}: which is meant is unknown. "
                    "Remove the file that does not belong to the model."
                )
            places[name] = (file, name)
    if WHOLE_FILE in files:
        return places
    index = _index(directory)
    wrong = [name for name, file in index.items() if places.get(name, ("", ""))[0] != file]
    if wrong:
        raise HuggingFaceWeightsError(
            f"{directory / INDEX_FILE} says that {index[wrong[0]]} holds the tensor {wrong[0]}, and it does not "
            f"({len(wrong)} such tensors). Download index and files again: they do not belong together."
        )
    return places


def _index(directory: Path) -> dict[str, str]:
    """File of each tensor, as the index says; every name is one of a file in this very directory."""
    path = directory / INDEX_FILE
    if not path.exists():
        raise HuggingFaceWeightsError(
            f"{directory} has neither {WHOLE_FILE} nor {INDEX_FILE}, and weights are read from safetensors alone: "
            "other formats can run code. Convert them: load with transformers and save_pretrained."
        )
    weight_map: Any = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise HuggingFaceWeightsError(f"{path} has no weight_map: it names no files. Download it again.")
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or file != Path(file).name or not file.endswith(".safetensors"):
            raise HuggingFaceWeightsError(
                f"{path} puts the tensor {tensor} into {file!r}, and only names of .safetensors files in the same "
                "directory are followed. Do not use this directory: such an index was not written by transformers."
            )
    return dict(weight_map)


def _some(names: list[str], shown: int = 3) -> str:
    names = sorted(names)
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
