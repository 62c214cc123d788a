"""What lies beside a model's weights: its configuration and its tokenizer. Read without torch."""

import json
from pathlib import Path
from typing import Any

from neuronrank.errors import SourceError
from neuronrank.files import read_json, sha256_file, sha256_text

_CONFIG = "config.json"
_VOLATILE_CONFIG = {"_name_or_path", "_model_name_or_path", "transformers_version"}
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
_TOKENIZER_CONFIG = "tokenizer_config.json"
_TOKENIZER_SETTINGS = ("merges.txt", _TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json")


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
        SourceError: not an object.
    """
    content = json_object(directory / _CONFIG)
    return {key: value for key, value in content.items() if key not in _VOLATILE_CONFIG}


def tokenizer_sha256(directory: Path) -> str:
    """Return one SHA-256 over all files that say how text becomes token ids: vocabulary, merges and settings.

    Raises:
        SourceError: the directory has no vocabulary.
    """
    present = {name: directory / name for name in (*_VOCABULARIES, *_TOKENIZER_SETTINGS) if (directory / name).exists()}
    if not present.keys() & set(_VOCABULARIES):
        raise SourceError(f"{directory}: no tokenizer; expected one of {', '.join(_VOCABULARIES)}")
    return sha256_text(json.dumps({name: sha256_file(path) for name, path in present.items()}, sort_keys=True))
