"""What lies beside a model's weights: its configuration, its tokenizer, and texts about it. Read without torch."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from neuronrank.errors import SourceError
from neuronrank.files import canonical_json, read_json, sha256_file, sha256_text

_CONFIG = "config.json"
_VOLATILE_CONFIG = {"_name_or_path", "_model_name_or_path", "transformers_version"}
_NUMBERS_OF_LAYERS = {"num_hidden_layers", "n_layer"}
"""What architectures call it."""
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
_TOKENIZER_CONFIG = "tokenizer_config.json"
_TOKENIZER_SETTINGS = ("merges.txt", _TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json")
_CHECKED = {_CONFIG, *_VOCABULARIES, *_TOKENIZER_SETTINGS}
"""`model.json` holds their content or its checksum."""
_UNCHECKED = {"model.safetensors.index.json", "generation_config.json", "chat_template.jinja", "chat_template.json"}
_ABOUT = {"README", "LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY"}
"""Texts about a model, with the ending .md, .txt or none."""


def json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object of a model's directory.

    Raises:
        ArtifactError: missing, or not JSON.
        SourceError: not an object.
    """
    content = read_json(path, run="fetch the model again")
    if not isinstance(content, dict):
        raise SourceError(f"{path}: holds a {type(content).__name__}, expected an object. Fetch the model again")
    return content


def read_configuration(directory: Path) -> dict[str, Any]:
    """Return `config.json` but for what differs between copies of one model.

    Raises:
        ArtifactError: missing, or not JSON.
        SourceError: not an object, it holds what JSON in UTF-8 cannot, or it lets other files be read in its place.
    """
    path = directory / _CONFIG
    content = json_object(path)
    _require_no_others(path, content, "configuration_files", _CONFIG)
    config = {key: value for key, value in content.items() if key not in _VOLATILE_CONFIG}
    try:
        canonical_json(config).encode("utf-8")
    except ValueError as err:
        raise SourceError(f"{path}: holds a number or a text that JSON cannot ({err}). Fetch another copy") from err
    return config


def _require_no_others(path: Path, content: dict[str, Any], key: str, own: str) -> None:
    """Refuse settings by which transformers reads a file that no checksum covers instead of the one of that name."""
    if content.get(key, [own]) != [own]:
        raise SourceError(
            f"{path}: its {key} let transformers read other files instead of {own}, which are in no fingerprint. "
            f"Keep the content that is meant in {own}, and delete that entry"
        )


def require_possible(directory: Path, config: dict[str, Any], n_tensors: int) -> None:
    """Refuse a configuration of more layers than there are tensors, before a model of so many is built.

    Raises:
        SourceError: names both numbers.
    """
    for key in _NUMBERS_OF_LAYERS & config.keys():
        stated = config[key]
        if stated is not None and not (type(stated) is int and 0 <= stated <= n_tensors):
            raise SourceError(
                f"{directory / _CONFIG}: {key} is {stated!r}, but the checkpoint holds {n_tensors} tensors, and every "
                f"layer has some. Fetch another copy"
            )


def tokenizer_sha256(directory: Path) -> str:
    """Return one SHA-256 over all files that say how text becomes token ids: vocabulary, merges and settings.

    Raises:
        ArtifactError: its settings are not JSON.
        SourceError: the directory has no vocabulary, or settings that let other files be read in its place.
    """
    present = {name: directory / name for name in (*_VOCABULARIES, *_TOKENIZER_SETTINGS) if (directory / name).exists()}
    if not present.keys() & set(_VOCABULARIES):
        raise SourceError(f"{directory}: no tokenizer; expected one of {', '.join(_VOCABULARIES)}")
    if _TOKENIZER_CONFIG in present:
        settings = present[_TOKENIZER_CONFIG]
        _require_no_others(settings, json_object(settings), "fast_tokenizer_files", "tokenizer.json")
    return sha256_text(json.dumps({name: sha256_file(path) for name, path in present.items()}, sort_keys=True))


def files_to_copy(directory: Path) -> Iterator[Path]:
    """Yield what a copy of a model needs beside its weights, and texts about it, by known names only.

    Links are followed: the hub's own cache consists of them. A file that is in no checksum may not link to elsewhere
    on the machine, or somebody's private file would be passed on under a harmless name.

    Raises:
        SourceError: a file that nothing is known of links out of the directory.
    """
    for path in sorted(directory.iterdir()):
        about = path.stem in _ABOUT and path.suffix in ("", ".md", ".txt")
        if path.is_file() and (path.name in _CHECKED | _UNCHECKED or about):
            if path.name not in _CHECKED:
                _require_stored_together(path)
            yield path


def _require_stored_together(path: Path) -> None:
    """Refuse a link to a file that lies neither in the directory nor where its configuration is stored.

    Caches that link keep the files of one model in one folder, or in folders beside each other.
    """
    config = path.with_name(_CONFIG)
    stores = [path.parent.resolve(), *([config.resolve().parent.parent] if config.is_symlink() else [])]
    target = path.resolve()
    if not any(target.is_relative_to(store) for store in stores):
        raise SourceError(
            f"{path}: is a link to {target}, which is no file of this model. Put a copy there, or delete it"
        )
