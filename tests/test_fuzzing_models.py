"""Descriptions of models and of exported ones that somebody forged: each is read, or refused with an error of ours."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from neuronrank.checkpoint import describe_model, open_model
from neuronrank.cli import main
from neuronrank.differing import difference
from neuronrank.errors import ArtifactError, NeuronrankError
from neuronrank.files import canonical_json, read_json, write_sealed_json
from neuronrank.model_files import tokenizer_sha256
from neuronrank.seals import BLANK, FIELD, sealed_text
from neuronrank.verifying import verify
from tests.test_fuzzing import _FUZZ, forged, put_back


@pytest.fixture(scope="module")
def root(finished_project, tiny_model, tmp_path_factory) -> Path:
    """A fetched model with its weights beside it, and an exported one."""
    root = tmp_path_factory.mktemp("models")
    shutil.copytree(tiny_model, root / "model")
    write_sealed_json(root / "model/model.json", describe_model(root / "model", {}, {}))
    command = ["export", "--model", str(root / "model"), "--mask", str(finished_project.mask("wanda", "50pct"))]
    assert CliRunner().invoke(main, [*command, "--out", str(root / "out")]).exit_code == 0
    return root


def write_forged(path: Path, value: object) -> None:
    try:
        path.write_text(sealed_text(canonical_json({**value, FIELD: BLANK})))
    except ValueError:  # holds the place of a second seal
        path.write_text(canonical_json(value))


@given(data=st.data())
@_FUZZ
def test_a_description_of_a_model_is_forged_and_sealed(root, data):
    path = root / "model/model.json"
    with put_back(path) as before:
        write_forged(path, data.draw(forged(json.loads(before[path]))))
        verify([root / "model"])
        try:
            model = open_model(root / "model")
            assert model.n_parameters >= 0
            for name in model.checkpoint().names:
                model.checkpoint().tensor(name)
        except NeuronrankError:
            return


@given(data=st.data())
@_FUZZ
def test_a_description_of_an_exported_model_is_forged_and_sealed(root, data):
    path = root / "out/neuronrank.json"
    with put_back(path) as before:
        write_forged(path, data.draw(forged(json.loads(before[path]))))
        verify([root / "out"])
        try:
            assert difference(root / "out", root / "out")["equal"]
        except NeuronrankError:
            return


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "model.safetensors.index.json"])
@given(data=st.data())
@_FUZZ
def test_files_of_a_model_are_forged(root, name, data):
    path = root / "model" / name
    with put_back(path) as before:
        path.write_text(json.dumps(data.draw(forged(json.loads(before[path])))))
        verify([root / "model"])
        try:
            describe_model(root / "model", {}, {})
            tokenizer_sha256(root / "model")
        except NeuronrankError:
            return


@pytest.mark.parametrize(
    "weights",
    [
        {"hub": "../../../x", "revision": "a" * 40},
        {"hub": "a/b/c", "revision": "a" * 40},
        {"hub": "a/b", "revision": "../../x"},
        {"hub": "a/b", "revision": "main"},
        {"hub": "a/b"},
        {"revision": "a" * 40},
        {"path": ""},
        {"path": ".", "hub": "a/b", "revision": "a" * 40},
        {"url": "x"},
    ],
)
def test_weights_are_beside_the_description_or_at_a_path_or_at_a_commit_of_the_hub(root, weights):
    path = root / "model/model.json"
    with put_back(path):
        write_sealed_json(path, {**read_json(path, "x"), "weights": weights})
        with pytest.raises(ArtifactError, match=r"model\.json: weights: is neither empty, nor a path, nor a hub's"):
            open_model(path.parent)
        assert len([finding for finding in verify([path.parent]) if finding.is_fault]) == 1


def test_a_name_that_the_hub_itself_refuses_is_told(root):
    path = root / "model/model.json"
    with put_back(path):
        weights = {"hub": "a--b/c..d", "revision": "a" * 40}
        write_sealed_json(path, {**read_json(path, "x"), "weights": weights})
        with pytest.raises(NeuronrankError, match=r"a--b/c\.\.d at a{40}: not in the local hub cache"):
            open_model(path.parent)


@pytest.mark.parametrize("value", ["NaN", '"\\ud800"'])
def test_what_no_file_of_ours_holds_is_a_fault_of_the_description(root, value):
    path = root / "model/model.json"
    with put_back(path) as before:
        text = before[path].decode().replace(json.loads(before[path])[FIELD], BLANK)
        path.write_text(sealed_text(text.replace('"config": {', f'"config": {{"more": {value},', 1)))
        assert any(finding.is_fault for finding in verify([path.parent]))
