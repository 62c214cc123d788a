"""A whole project in a temporary directory: parameters for the tiny model, and stages run in process or by DVC."""

from pathlib import Path

import yaml
from click.testing import CliRunner, Result

from stages import collect, eval, fetch, prepare, prune, report, score, sequential

STAGES = {
    module.__name__.removeprefix("stages."): module.main
    for module in (collect, eval, fetch, prepare, prune, report, score, sequential)
}
WANDA = {"method": "wanda", "weight_exp": 1.0, "activation_exp": 1.0}
TFIDF = {"method": "neuronrank_tfidf", "mode": "doc", "weight_exp": 1.0, "tf_exp": 1.0, "idf_exp": 1.0, "q_active": 0.6}


def tiny_params(model: Path, texts: Path) -> dict:
    """Return the content of a params.yaml."""
    return {
        "model": {"source": "path", "architecture": "llama", "path": str(model)},
        "text": {
            "calibration": {"source": "files", "pattern": str(texts / "calibration.jsonl")},
            "evaluation": {
                name: {"source": "files", "pattern": str(texts / f"{name}.jsonl")} for name in ("wiki", "news")
            },
        },
        "prepare": {"window_tokens": 16, "calibration_windows": 12, "evaluation_windows": 5, "seed": 0},
        "collect": {
            "dtype": "float32",
            "documents_per_batch": 5,
            "profile": "full",
            "classes": 10,
            "topics": {"micro_topics": 8, "iterations": 4, "seed": 0},
        },
        "recipes": {"wanda": {"attention": WANDA, "mlp": WANDA}, "hybrid": {"attention": WANDA, "mlp": TFIDF}},
        "patterns": {
            "50pct": {"rule": "unstructured", "sparsity": 0.5},
            "2of4": {"rule": "n_of_m", "keep_n": 2, "group_m": 4},
        },
        "sweep": {"recipes": ["wanda", "hybrid"], "patterns": ["50pct"]},
        "sequential": {"recipes": ["wanda"], "patterns": ["50pct"]},
        "eval": {"dtype": "float32", "windows_per_batch": 2, "seed": 0},
        "report": {"reference": "wanda", "seed": 0},
    }


class Project:
    """Paths of a project and a way to run its stages."""

    def __init__(self, root: Path, params: dict) -> None:
        self.root = root
        self.artifacts, self.metrics = root / "artifacts", root / "metrics"
        self.params = root / "params.yaml"
        self.write_params(params)

    def write_params(self, params: dict) -> None:
        """Replace params.yaml."""
        self.params.write_text(yaml.safe_dump(params, sort_keys=False))

    def stage(self, name: str, *arguments: str, metrics: str) -> Result:
        """Run a stage in this process."""
        common = ["--params", str(self.params), "--metrics", str(self.metrics / metrics)]
        return CliRunner().invoke(STAGES[name], [*arguments, *common])

    def fetch(self, what: str) -> Result:
        return self.stage("fetch", what, "--out", str(self.artifacts / what), metrics=f"fetch/{what}.json")

    def prepare(self) -> Result:
        tokens = self.artifacts / "tokens"
        inputs = ["--model", str(self.artifacts / "model"), "--text", str(self.artifacts / "text")]
        outputs = ["--calibration", str(tokens / "calibration"), "--evaluation", str(tokens / "evaluation")]
        return self.stage("prepare", *inputs, *outputs, metrics="prepare.json")

    def collect(self) -> Result:
        inputs = ["--model", str(self.artifacts / "model"), "--tokens", str(self.artifacts / "tokens/calibration")]
        return self.stage("collect", *inputs, "--out", str(self.statistics), metrics="collect.json")

    def score(self, recipe: str) -> Result:
        paths = ["--statistics", str(self.statistics), "--out", str(self.scores(recipe))]
        return self.stage("score", "--recipe", recipe, *paths, metrics=f"score/{recipe}.json")

    def prune(self, recipe: str, pattern: str) -> Result:
        inputs = ["--pattern", pattern, "--model", str(self.artifacts / "model"), "--scores", str(self.scores(recipe))]
        out = ["--out", str(self.mask(recipe, pattern))]
        return self.stage("prune", *inputs, *out, metrics=f"prune/{recipe}/{pattern}.json")

    def eval(self, recipe: str | None = None, pattern: str | None = None) -> Result:
        inputs = ["--model", str(self.artifacts / "model"), "--tokens", str(self.artifacts / "tokens/evaluation")]
        dense = self.artifacts / "losses/dense.safetensors"
        if recipe is None:
            return self.stage("eval", *inputs, "--losses", str(dense), metrics="eval/dense.json")
        inputs += ["--mask", str(self.mask(recipe, pattern)), "--dense", str(dense)]
        out = ["--losses", str(self.artifacts / f"losses/{recipe}/{pattern}.safetensors")]
        return self.stage("eval", *inputs, *out, metrics=f"eval/{recipe}/{pattern}.json")

    def sequential(self, recipe: str, pattern: str) -> Result:
        inputs = ["--model", str(self.artifacts / "model"), "--tokens", str(self.artifacts / "tokens/calibration")]
        name = f"{recipe}_sequential"
        out = ["--statistics", str(self.artifacts / f"sequential/{recipe}/{pattern}"), "--out"]
        by = ["--by", recipe, pattern]
        return self.stage(
            "sequential", *by, *inputs, *out, str(self.mask(name, pattern)), metrics=f"prune/{name}/{pattern}.json"
        )

    def report(self) -> Result:
        paths = ["--artifacts", str(self.artifacts), "--measured", str(self.metrics)]
        return self.stage("report", *paths, "--out", str(self.artifacts / "report"), metrics="report.json")

    def run_all(self) -> None:
        """Run the whole pipeline of the tiny parameters."""
        steps = [self.fetch("model"), self.fetch("text"), self.prepare(), self.collect(), self.eval()]
        for recipe in ("wanda", "hybrid"):
            steps += [self.score(recipe), self.prune(recipe, "50pct"), self.eval(recipe, "50pct")]
        steps += [self.sequential("wanda", "50pct"), self.eval("wanda_sequential", "50pct"), self.report()]
        for step in steps:
            assert step.exit_code == 0, step.output

    @property
    def statistics(self) -> Path:
        return self.artifacts / "statistics"

    def scores(self, recipe: str) -> Path:
        return self.artifacts / f"scores/{recipe}.safetensors"

    def mask(self, recipe: str, pattern: str) -> Path:
        return self.artifacts / f"masks/{recipe}/{pattern}.safetensors"
