"""What `neuronrank verify` checks of a model that was fetched, and of an exported one."""

from pathlib import Path

from neuronrank.checkpoint import open_model
from neuronrank.errors import ArtifactError, MismatchError, NeuronrankError
from neuronrank.export_description import read_export, require_listed
from neuronrank.files import canonical_json, sha256_text
from neuronrank.findings import Checked
from neuronrank.model_description import EXPORT_FILE, MODEL_FILE, read_description
from neuronrank.seals import FIELD


def check_model(directory: Path) -> Checked:
    """Check a model's description, its weights, configuration and tokenizer.

    Raises:
        ArtifactError: the description cannot be read.
    """
    described = read_description(directory)
    checked = Checked(directory, "model", described["fingerprint"])
    checked.ok(f"{MODEL_FILE}: seal {described[FIELD][:12]}…, {described['schema']}, header")
    try:
        found = sha256_text(canonical_json({"config": described["config"], "tensors": described["tensors"]}))
    except ValueError as err:  # a number or a text that no file of ours holds
        found = str(err)
    if found != described["fingerprint"]:
        checked.fault(f"{MODEL_FILE}: states fingerprint {described['fingerprint'][:12]}…, its tensors give {found}")
    try:
        model = open_model(directory)
        checkpoint = model.checkpoint()
    except NeuronrankError as err:
        checked.fault(str(err))
        return checked
    checked.ok(f"configuration and headers of {len(checkpoint.shards)} files of weights in {model.weights_directory}")
    checked.attempt("tokenizer", model.require_its_tokenizer)
    n = 0
    for name in sorted(model.tensors.keys() | set(checkpoint.names)):
        try:
            if name not in model.tensors:
                raise MismatchError(f"{name}: {MODEL_FILE} does not list this tensor")
            checkpoint.tensor(name)
            n += 1
        except NeuronrankError as err:
            checked.fault(str(err))
    checked.ok(f"{n} of {len(model.tensors)} tensors: checksums")
    return checked


def check_export(directory: Path) -> Checked:
    """Check every file of an exported model against what the export wrote.

    Raises:
        ArtifactError: `neuronrank.json` cannot be read, or changed.
    """
    described = read_export(directory)
    checked = Checked(directory, "export", described[FIELD], described["made_from"])
    checked.ok(f"{EXPORT_FILE}: seal {described[FIELD][:12]}…, {described['schema']}, header")
    before = len(checked.findings)
    for name, entry in described["files"].items():
        try:
            require_listed(directory / name, entry["bytes"], entry["sha256"])
        except ArtifactError as err:
            checked.fault(str(err))
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        is_folder = path.is_dir() and not path.is_symlink()
        if not is_folder and name not in {*described["files"], EXPORT_FILE}:  # whatever it is, a program may load it
            checked.fault(f"{name}: {'a link' if path.is_symlink() else 'a file'} that the export did not write")
    if len(checked.findings) == before:
        checked.ok(f"{len(described['files'])} files: sizes and checksums; no others")
    return checked
