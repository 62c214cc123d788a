"""A task for the harness that needs no network: word analogies with four choices, from a file in the gensim wheel."""

import json
import random
from pathlib import Path

from neuronrank.downloads import fetch_wheel, open_member
from neuronrank.text_sources import wikipedia_articles

TASK = "analogies"
_MEMBER = "gensim/test/test_data/questions-words.txt"
_SECTIONS = ("capital-common-countries", "currency", "city-in-state", "family", "gram6-nationality-adjective")
_YAML = """\
task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""


def items(wheel: dict, n: int, seed: int) -> list[dict]:
    """Draw questions such as "Athens is to Greece as Baghdad is to": Iraq, and three other answers of the section."""
    with open_member(fetch_wheel(wikipedia_articles.Wheel(**wheel)), _MEMBER) as file:
        sections = _sections(file.read().decode())
    draw = random.Random(seed)
    drawn = []
    for number in range(n):
        pairs = sections[_SECTIONS[number % len(_SECTIONS)]]
        (left, right), (asked, answer) = draw.sample(pairs, 2)
        others = sorted({other for _, other in pairs} - {right, answer})
        choices = draw.sample([answer, *draw.sample(others, 3)], 4)
        prompt = f"{left} is to {right} as {asked} is to"
        drawn.append({"prompt": prompt, "choices": choices, "answer": choices.index(answer)})
    return drawn


def write_task(directory: Path, questions: list[dict]) -> None:
    """Write the questions and the task file that the harness reads."""
    directory.mkdir()
    data = directory / f"{TASK}.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in questions))
    (directory / f"{TASK}.yaml").write_text(_YAML.format(task=TASK, data=data))


def _sections(text: str) -> dict[str, list[tuple[str, str]]]:
    """Return the pairs of every section, each once; a line holds two pairs, `: name` starts a section."""
    found: dict[str, dict[tuple[str, str], None]] = {}
    for line in text.splitlines():
        if line.startswith(":"):
            pairs = found.setdefault(line[1:].strip(), {})
        else:
            left, right, other_left, other_right = line.split()
            pairs |= {(left, right): None, (other_left, other_right): None}
    return {name: list(pairs) for name, pairs in found.items()}
