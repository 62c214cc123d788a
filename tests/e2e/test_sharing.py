"""docs/SHARING.md, block by block, with two clones and an S3 server on this machine."""

import json
import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import zarr

from tests.e2e.repository import Repository, stages_run
from tests.imports import ROOT

pytestmark = pytest.mark.e2e

PAGE = (ROOT / "docs/SHARING.md").read_text()
BUCKET, SECRET = "team-artifacts", "a-secret-of-the-test"
BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OF_THE_RECIPE = {"score@hybrid", "prune@hybrid-50pct", "eval@hybrid-50pct", "report"}
RESULTS = (
    *("scores/hybrid.safetensors", "masks/hybrid/50pct.safetensors", "losses/hybrid/50pct.safetensors"),
    *("report/factors.csv", "report/sparsity_by_layer.csv"),  # of all recipes; the others hold times
)
_followed: set[str] = set()


def blocks(heading: str) -> list[str]:
    """Return the commands below a heading, up to the next heading."""
    return BLOCK.findall(re.split(rf"^#+ {heading}$", PAGE, flags=re.MULTILINE)[1].split("\n#")[0])


def follow(block: str, repository: Repository, folder: Path | None = None) -> str:
    """Run a block of the page as one script and return what it printed."""
    _followed.add(block)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=folder or repository.root,
        env=repository.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def request(method: str, url: str, data: bytes | None = None) -> None:
    """Speak to the server as its owner."""
    signed = "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
    headers = {"Authorization": signed, "Content-Type": "application/octet-stream"}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    asked = urllib.request.Request(url, data=data, method=method, headers=headers)
    with opener.open(asked, timeout=30) as answer:
        assert answer.status in (200, 204)


def files(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tables(printed: str) -> list[list[list[str]]]:
    """Return the cells of every Markdown table, row by row, its header first."""
    found = [table.splitlines() for table in re.findall(r"(?:^\|.*\n)+", printed, re.MULTILINE)]
    return [[[cell.strip() for cell in line.strip("|").split("|")] for line in lines] for lines in found]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Let a test reach the server on this machine and nothing else; what its commands reach is not watched."""
    connect = socket.socket.connect

    def guarded(self, address):
        assert address[0] == "127.0.0.1", f"a test opened a connection to {address}"
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory) -> Iterator[str]:
    """An S3 server with an empty bucket."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("s3") / "log"
    with log.open("w") as printed:
        command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
        server = subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT)
        try:
            for _ in range(600):
                if "Running on" in log.read_text():
                    break
                with pytest.raises(subprocess.TimeoutExpired):  # it ended: the log says why
                    server.wait(0.1)
            assert "Running on" in log.read_text()
            request("PUT", f"http://127.0.0.1:{port}/{BUCKET}")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(30)


@pytest.fixture(scope="module")
def team(endpoint, tmp_path_factory) -> dict[str, str]:
    """What the page asks to be set, and an empty git remote."""
    origin = tmp_path_factory.mktemp("origin") / "origin.git"
    subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch", "main", origin], check=True)
    variables = {"GIT_URL": str(origin), "S3_BUCKET": BUCKET, "S3_ENDPOINT": endpoint}
    return {**variables, "S3_KEY_ID": "key", "S3_SECRET": SECRET}


def member(repository: Repository, variables: dict[str, str]) -> Repository:
    """Give a clone its owner's variables and name."""
    repository.environment |= {**variables, "NO_PROXY": "127.0.0.1", "AWS_EC2_METADATA_DISABLED": "true"}
    (repository.root.parent / ".gitconfig").write_text("[user]\nname = t\nemail = t@example.org\n")
    return repository


@pytest.fixture(scope="module")
def collector(repository, team) -> Repository:
    """The clone that has collected and pushed."""
    member(repository, team).git("remote", "add", "origin", team["GIT_URL"])
    printed = [follow(block, repository) for block in blocks("Once, by whoever collects")]
    assert stages_run(printed[-1]) == set()  # everything ran already
    return repository


@pytest.fixture(scope="module")
def colleague(collector, team, tmp_path_factory) -> Repository:
    """A fresh clone, with credentials in the environment instead of a file."""
    home = tmp_path_factory.mktemp("colleague")
    keys = {"AWS_ACCESS_KEY_ID": team["S3_KEY_ID"], "AWS_SECRET_ACCESS_KEY": team["S3_SECRET"]}
    clone = member(Repository(home / "neuronrank", collector.programs), {**team, **keys})
    (block,) = blocks("Everyone else")
    follow(block, clone, home)
    return clone


def test_secrets_stay_out_of_git(collector, endpoint):
    config = collector.git("show", "HEAD:.dvc/config")
    assert f"url = s3://{BUCKET}/neuronrank" in config
    assert f"endpointurl = {endpoint}" in config
    assert SECRET in (collector.root / ".dvc/config.local").read_text()
    assert collector.attempt("git", "grep", "--quiet", SECRET, "HEAD").returncode == 1
    assert collector.git("status", "--porcelain") == ""


@pytest.fixture(scope="module")
def one_statistic(colleague, tmp_path_factory) -> SimpleNamespace:
    """What is there after each of the two partial pulls, and what DVC says of it."""
    whole, layer, elsewhere = blocks("One statistic")
    statistics, cache = colleague.root / "artifacts/statistics", colleague.root / ".dvc/cache/files/md5"
    assert not statistics.exists()
    seen = SimpleNamespace(printed=[follow(whole, colleague)], held=[files(statistics)], fetched=[files(cache)])
    seen.printed.append(follow(layer, colleague))
    seen.held.append(files(statistics))
    seen.fetched.append(files(cache))
    seen.status = json.loads(colleague.dvc("status", "--json", "collect"))["collect"]
    seen.elsewhere = tmp_path_factory.mktemp("elsewhere")
    follow(elsewhere, colleague, seen.elsewhere)
    return seen


def test_one_array_is_fetched_and_nothing_else(one_statistic, collector):
    stored = files(collector.root / "artifacts/statistics")
    array = "taps.zarr/attn_in/wanda_sum_sq"
    pulled = (f"{array}/zarr.json", f"{array}/c/0/0")
    assert one_statistic.held[0] == {path: stored[path] for path in ("manifest.json", "taps.zarr/zarr.json", *pulled)}
    objects = {name: data for name, data in one_statistic.fetched[0].items() if not name.endswith(".dir")}
    assert sorted(objects.values()) == sorted(one_statistic.held[0].values())
    assert sum(len(stored[path]) for path in pulled) < sum(map(len, stored.values())) / 50
    assert files(one_statistic.elsewhere / "wanda_sum_sq") == {
        path.removeprefix(f"{array}/"): stored[path] for path in pulled
    }
    # by its definition, from an array that was not pulled
    documents = zarr.open_array(collector.root / "artifacts/statistics/taps.zarr/attn_in/sum_sq", mode="r")
    shown = [float(value) for value in one_statistic.printed[0].rpartition("[")[2].rstrip("]\n").split()]
    np.testing.assert_allclose(shown, documents[1].sum(axis=0), rtol=1e-4)


def test_one_layer_is_fetched_and_the_other_is_refused(one_statistic, collector):
    stored = files(collector.root / "artifacts/statistics")
    array = "taps.zarr/mlp_mid/sum_sq"
    added = one_statistic.held[1].keys() - one_statistic.held[0].keys()
    assert added == {f"{array}/zarr.json", f"{array}/c/1/0/0"}
    assert all(one_statistic.held[1][path] == stored[path] for path in added)
    fetched = sum(map(len, one_statistic.fetched[1].values())) - sum(map(len, one_statistic.fetched[0].values()))
    assert fetched == sum(len(stored[path]) for path in added)
    first, second = one_statistic.printed[1].splitlines()[-2:]
    assert "c/0/0/0: missing, although the manifest lists it" in second
    total = zarr.open_array(collector.root / "artifacts/statistics" / array, mode="r")[1].sum()
    assert first.startswith("(12, 40) ")
    assert float(first.split()[-1]) == pytest.approx(float(total), rel=1e-5)


def test_a_part_of_the_statistics_counts_as_changed_as_the_page_warns(one_statistic):
    changed = next(entry["changed outs"] for entry in one_statistic.status if "changed outs" in entry)
    assert changed.keys() == {"artifacts/statistics"}


@pytest.fixture(scope="module")
def experiment(colleague, one_statistic) -> SimpleNamespace:
    """What the changed exponent ran, left in the workspace and compares as."""
    run, compare = blocks("Change an exponent")
    seen = SimpleNamespace(printed=follow(run, colleague), changed=colleague.git("status", "--porcelain"))
    seen.calibration = (colleague.root / "artifacts/tokens/calibration").exists()
    seen.compared = follow(compare, colleague)
    seen.page = (colleague.root / "dvc_plots/index.html").read_text()
    seen.metrics = json.loads((colleague.root / "metrics/eval/hybrid/50pct.json").read_text())
    return seen


def test_a_changed_exponent_runs_no_calibration(experiment, colleague, collector):
    assert stages_run(experiment.printed) == OF_THE_RECIPE
    assert "Stage 'collect' didn't change, skipping" in experiment.printed
    assert not experiment.calibration  # so that none could have run
    statistics = files(collector.root / "artifacts/statistics")
    assert files(colleague.root / "artifacts/statistics") == statistics
    assert len(statistics) > 50


def test_an_experiment_changes_what_the_page_says(experiment):
    changed = {line.split()[1] for line in experiment.changed.splitlines()}
    measured = {
        f"metrics/{name}.json" for name in ("score/hybrid", "prune/hybrid/50pct", "eval/hybrid/50pct", "report")
    }
    assert changed == {"params.yaml", "dvc.lock", *measured}


def test_an_experiment_is_compared_with_the_last_commit(experiment, collector):
    before = json.loads(collector.git("show", "HEAD:metrics/eval/hybrid/50pct.json"))
    shown, differing = tables(experiment.compared)
    exponent = shown[0].index("recipes.hybrid.mlp.idf_exp")
    named = {row[0].split("[")[-1].rstrip("]"): row[exponent] for row in shown[2:]}
    assert named == {"workspace": "3", "main": "1", "idf3": "3"}
    assert differing[0] == ["Path", "Metric", "HEAD", "workspace", "Change"]
    perplexity = {row[1]: row[2:4] for row in differing[2:]}["perplexity.wiki"]
    np.testing.assert_allclose(
        [float(value) for value in perplexity],
        [before["perplexity"]["wiki"], experiment.metrics["perplexity"]["wiki"]],
        rtol=1e-4,
    )
    assert before["perplexity"]["wiki"] != experiment.metrics["perplexity"]["wiki"]
    for said in ("Perplexity by recipe", '"rev": "HEAD"', '"rev": "workspace"'):
        assert said in experiment.page


@pytest.fixture(scope="module")
def passed_on(experiment, colleague, collector) -> SimpleNamespace:
    """The same change made by the collector, undone, and then taken from the colleague."""
    colleagues = {name: (colleague.root / f"artifacts/{name}").read_bytes() for name in RESULTS}
    push, take, keep = blocks("Pass it on")
    (undo,) = blocks("Take it back")
    seen = SimpleNamespace(colleagues=colleagues)
    seen.alone = stages_run(collector.dvc("exp", "run", "--set-param", "recipes.hybrid.mlp.idf_exp=3"))
    seen.collectors = {name: (collector.root / f"artifacts/{name}").read_bytes() for name in RESULTS}
    seen.metrics = json.loads((collector.root / "metrics/eval/hybrid/50pct.json").read_text())
    follow(undo, collector)
    seen.undone = collector.git("status", "--porcelain"), collector.dvc("status")
    before = collector.read_params()["recipes"]["hybrid"]["mlp"]["idf_exp"]
    follow(push, colleague)
    taken = follow(take, collector)
    seen.exponents = before, collector.read_params()["recipes"]["hybrid"]["mlp"]["idf_exp"]
    seen.taken, seen.left = stages_run(taken), collector.dvc("status")
    seen.applied = json.loads((collector.root / "metrics/eval/hybrid/50pct.json").read_text())
    follow(keep, collector)
    follow(undo, colleague)
    return seen


def test_the_same_change_gives_the_same_bytes_in_both_clones(passed_on, experiment):
    assert passed_on.alone == OF_THE_RECIPE
    assert passed_on.collectors == passed_on.colleagues
    for name in ("perplexity", "ratio_to_dense", "sparsity"):
        assert passed_on.metrics[name] == experiment.metrics[name]


def test_an_experiment_is_taken_back_and_taken_over(passed_on, experiment, colleague, collector):
    assert passed_on.undone == ("", "Data and pipelines are up to date.\n")
    assert passed_on.exponents == (1.0, 3)
    assert passed_on.taken == set()
    assert passed_on.left == "Data and pipelines are up to date.\n"
    assert passed_on.applied == experiment.metrics  # its times too: nothing was measured again
    assert collector.git("status", "--porcelain") == ""
    assert collector.git("rev-parse", "HEAD") == collector.git("rev-parse", "origin/main")
    assert colleague.git("status", "--porcelain") == ""
    assert colleague.read_params()["recipes"]["hybrid"]["mlp"]["idf_exp"] == 1.0


def test_a_pull_brings_the_same_bytes(passed_on, colleague, collector):
    assert colleague.repro() == set()
    for part in ("statistics", "tokens", "model"):
        assert files(colleague.root / "artifacts" / part) == files(collector.root / "artifacts" / part)


def test_a_lost_object_is_an_error_until_it_is_uploaded(passed_on, colleague, collector, endpoint, tmp_path):
    array = "artifacts/statistics/taps.zarr/attn_in/wanda_sum_sq"
    lost = next(
        path
        for path in (collector.root / ".dvc/cache/files/md5").rglob("*")
        if path.is_file() and path.read_bytes() == (collector.root / array / "c/0/0").read_bytes()
    )
    place = f"{endpoint}/{BUCKET}/neuronrank/{lost.relative_to(collector.root / '.dvc/cache')}"
    request("DELETE", place)
    late = Repository(tmp_path / "late", collector.programs)
    late.environment |= {key: value for key, value in colleague.environment.items() if key.startswith(("AWS_", "NO_"))}
    colleague.git("clone", "--quiet", collector.environment["GIT_URL"], str(late.root))
    failed = late.attempt(sys.executable, "-m", "dvc", "pull", array)
    assert failed.returncode != 0
    # which of the two DVC says was seen to differ from run to run
    assert "failed to pull data from the cloud" in failed.stderr or "failed to transfer" in failed.stderr
    assert lost.parent.name + lost.name in failed.stderr
    assert not (late.root / array / "c/0/0").exists()
    assert "Everything is up to date." in collector.dvc("push", "collect")
    request("PUT", place, lost.read_bytes())
    late.dvc("pull", array)
    assert files(late.root / array) == files(collector.root / array)


def test_every_command_of_the_page_was_run(passed_on):
    assert _followed == set(BLOCK.findall(PAGE))
