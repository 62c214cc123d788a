"""What our headers must hold, by type: checked when a file is opened, so that what is read later is what it seems.

Keys that are not listed may be there as well. The schema itself is checked before (`files.check_schema`).
"""

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from neuronrank.errors import ArtifactError

_MOST_FAULTS = 8
_MOST = 2**40
"""No count or size of ours is larger; what is would fill memory before anything else noticed."""

_SURROGATES = re.compile("[\ud800-\udfff]")
"""Halves of characters, which JSON may hold and no name of a file."""


def _inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    plain = path == "/".join(parts) and not path.startswith("/") and ".." not in parts
    if not (plain and parts and not {"\\", ":", "\0"} & set(path) and not _SURROGATES.search(path)):
        raise ValueError("is not a plain relative path inside the directory")
    return path


def _fitting_rows(rows: list[int]) -> list[int]:
    offset, block, period = rows
    if not (block and offset + block <= period):
        raise ValueError("is not offset, block and period of rows that repeat")
    return rows


def _place_of_weights(weights: dict[str, str]) -> dict[str, str]:
    if weights.keys() == {"hub", "revision"}:
        is_named = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", weights["hub"]) is not None
        sound = is_named and re.fullmatch(r"[0-9a-f]{40}", weights["revision"]) is not None
    else:
        sound = weights.keys() <= {"path"} and weights.get("path", ".") != ""
    if not sound:
        raise ValueError("is neither empty, nor a path, nor a hub's repository and the commit of it")
    return weights


def _one_by_one(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Check a dictionary entry by entry up to the first fault: each takes a hundred times its size to describe."""
    if not isinstance(value, dict):
        return check(value)
    for name, item in value.items():
        check({name: item})
    return value


Key = TypeVar("Key")
Item = TypeVar("Item")
Dict = Annotated[dict[Key, Item], WrapValidator(_one_by_one)]
List = Annotated[list[Item], FailFast()]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=_MOST)]
Size = Annotated[int, Field(ge=1, le=_MOST)]
Layers = Annotated[int, Field(ge=1, le=100_000)]
Tap = Annotated[str, Field(pattern=r"^[^.]+(\.[0-9]{1,6})?$")]
"""Of `tap_names.py`: inside an expert it carries the expert's number."""
RelativePath = Annotated[str, AfterValidator(_inside)]
Shape = Annotated[List[Count], Field(min_length=1, max_length=8)]
Matrix = Annotated[list[Size], Field(min_length=2, max_length=2)]
Exponent = Annotated[float, Field(ge=-1e6, le=1e6)]
Rows = Annotated[list[Count], Field(min_length=3, max_length=3), AfterValidator(_fitting_rows)]


class Header(BaseModel):
    """Base of all: no silent type conversion, other keys allowed."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)


class FileEntry(Header):
    """One file of an artifact."""

    bytes: Count
    sha256: Sha256


def is_listed(name: str, entry: Any) -> bool:
    """Whether a list of files may hold this entry: a path inside, a size and a SHA-256."""
    try:
        _inside(name)
        FileEntry.model_validate(entry)
    except ValueError:  # pydantic's is one
        return False
    return True


Files = Dict[RelativePath, FileEntry]


class Model(Header):
    """Which weights."""

    fingerprint: Sha256


class Made(Header):
    """What every artifact says that is made from a model: which, and from what else."""

    model: Model
    made_from: Dict[str, str]
    """What went in -> its identity: `provenance.py`."""
    versions: Dict[str, str] = {}
    """Library -> its version; scores, masks and losses that were written first had none."""

    @model_validator(mode="after")
    def _names_one_model(self) -> Self:
        if self.made_from.get("model") != self.model.fingerprint:
            raise ValueError("made_from.model is not model.fingerprint")
        return self


class ModuleEntry(Header):
    """What every list of modules says of one."""

    name: str
    part: str
    shape: Matrix
    weight: str
    rows: Rows | None
    transposed: bool


class ScoredModule(ModuleEntry):
    """A decoder module."""

    layer: Count
    neuron_tap: Tap
    neuron_axis: Literal["row", "column"]


class CollectedModule(ScoredModule):
    """A decoder module whose statistics are held."""

    input_tap: Tap


class MaskedModule(ModuleEntry):
    """A module that a mask prunes; the output head has no layer."""

    layer: Count | None
    n_removed: Count


class Calibration(Header):
    """Token windows that statistics are of."""

    n_windows: Size
    origins: list[Any] = []
    """Where each window begins; of imported statistics nobody knows."""
    window_tokens: Size
    sha256: Sha256 | None
    """Of the token ids; None where they are not known."""


class Sequential(Header):
    """By what layers were pruned while statistics were collected."""

    parts: Dict[str, dict[str, Any]]
    pattern: dict[str, Any]


class Collected(Header):
    """How statistics were collected, as what is made from them has it: nothing where none were needed."""

    propagation: str | None = None
    sequential: Sequential | None = None

    @model_validator(mode="after")
    def _says_by_what(self) -> Self:
        if (self.propagation == "sequential") != (self.sequential is not None):
            raise ValueError("propagation through pruned layers and `sequential` go together")
        return self


class Collect(Collected):
    """How statistics were collected."""

    dtype: str
    propagation: str
    topics: dict[str, Any] = {}


class Manifest(Made):
    """Of a statistics artifact."""

    calibration: Calibration
    collect: Collect
    n_layers: Layers
    modules: List[CollectedModule]
    lm_head: dict[str, Any]
    profile: str
    arrays: Dict[str, List[str]]
    files: Files


class ScoredPart(Header):
    """How a part is scored."""

    method: str
    default_group: str
    elements: bool
    neurons: bool
    weight_exp: Exponent
    weight_multi: Exponent
    params: dict[str, Any]


class Scores(Made):
    """Of a file of scores."""

    recipe: str
    parts: Dict[str, ScoredPart]
    modules: List[ScoredModule]
    lm_head: dict[str, Any] | None
    n_layers: Layers
    calibration: dict[str, Any]
    collect: Collected


class Pattern(Header):
    """What a mask was made by."""

    name: str
    rule: str


class Masks(Made):
    """Of a file of masks."""

    recipe: str
    pattern: Pattern
    modules: List[MaskedModule]
    shapes: Dict[str, Shape]
    n_layers: Layers
    sparsity: Dict[str, float]
    untied: Dict[str, str]
    calibration: dict[str, Any]
    collect: Collected


class EvaluatedText(Header):
    """Windows that losses are of."""

    n_windows: Size
    window_tokens: Size
    sha256: Sha256


class Losses(Made):
    """Of a file of losses."""

    dtype: str
    device: str
    texts: Dict[str, EvaluatedText]


class Tokens(Header):
    """Of a file of token windows."""

    tokenizer_sha256: Sha256
    window_tokens: Size
    source: Any
    made_from: Dict[str, str] = {}


class TensorEntry(Header):
    """A stored tensor of a model."""

    dtype: str
    shape: List[Count]
    sha256: Sha256


class ModelDescription(Header):
    """Of `model.json`."""

    config: dict[str, Any]
    tensors: Dict[str, TensorEntry]
    fingerprint: Sha256
    tokenizer_sha256: Sha256
    weights: Annotated[dict[str, str], AfterValidator(_place_of_weights)]
    source: dict[str, Any]


class Export(Made):
    """Of `neuronrank.json` in an exported model."""

    files: Files
    modules: List[MaskedModule]
    sparsity: Dict[str, float]


def check_header(path: Path, header: Mapping[str, Any], kind: type[Header], run: str) -> None:
    """Refuse a header that does not hold what its schema promises.

    Args:
        path: the file, for the message.
        header: as read.
        kind: of this file.
        run: the command that makes it.

    Raises:
        ArtifactError: names the file and every field that is missing or of another type; in a list or a dictionary
            the first.
    """
    try:
        kind.model_validate(header)
    except ValidationError as err:
        faults = err.errors(include_url=False)
        missing = [fault for fault in faults if fault["type"] == "missing" and len(fault["loc"]) == 1]
        lines = [f"its header lacks {', '.join(str(fault['loc'][0]) for fault in missing)}"] if missing else []
        for fault in faults:
            if fault not in missing:
                where = ".".join(str(part) for part in fault["loc"])
                lines.append(f"{where}: {fault['msg'].removeprefix('Value error, ')}, found {_short(fault['input'])}")
        more = len(lines) - _MOST_FAULTS
        lines = [*lines[:_MOST_FAULTS], *([f"and {more} more"] if more > 0 else [])]
        raise ArtifactError(f"{path}: {'; '.join(lines)}. Make it again: {run}") from err


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of too many digits to be written out
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}…"
