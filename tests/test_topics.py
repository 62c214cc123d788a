"""Micro-topics of the tiny model, found again from plain hooks, and merged to every smaller number."""

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import cut_tree, linkage
from transformers import AutoModelForCausalLM

from neuronrank.checkpoint import Checkpoint
from neuronrank.collection import CollectParams, collect_layers, find_classes
from neuronrank.errors import NotFiniteError, ParamsError
from neuronrank.params import validate
from neuronrank.streaming import StreamedModel
from neuronrank.topic_merging import merged_topics
from neuronrank.topics import N_NEAREST, NOWHERE, TopicParams, find_topics, projected, projection
from tests import naive

K = 9
TOKENS = torch.randint(64, (6, 13), generator=torch.Generator().manual_seed(4))


def collect(directory, tokens=TOKENS, **changes):
    topics = {"micro_topics": K, "iterations": 4, "seed": 3, **changes}
    options = CollectParams.model_validate(
        {"dtype": "float32", "documents_per_batch": 4, "profile": "full", "classes": 5, "topics": topics}
    )
    model = StreamedModel(Checkpoint(directory), torch.float32, torch.device("cpu"))
    return list(collect_layers(model, tokens, options, find_classes(tokens, options)))


def topics_of(layer) -> dict[str, np.ndarray]:
    return {name: values for (group, name), values in layer.arrays.items() if group == "topics"}


@pytest.fixture(scope="module")
def layers(tiny_model):
    return collect(tiny_model)


@pytest.fixture(scope="module")
def model(tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64).eval()


@pytest.fixture(scope="module")
def taps(model):
    return naive.activations(model, TOKENS.numpy(), [0, 1])


@pytest.fixture(scope="module")
def directions(model) -> list[np.ndarray]:
    """(N, T, 128) of each layer: the residual stream that enters it, projected as documented, of unit length."""
    entering: list[torch.Tensor] = []
    handles = [
        layer.register_forward_pre_hook(lambda _m, x: entering.append(x[0].detach())) for layer in model.model.layers
    ]
    with torch.no_grad():
        model(TOKENS, use_cache=False)
    for handle in handles:
        handle.remove()
    # A standard normal matrix from the seed and the width, over sqrt(128).
    gaussian = np.random.default_rng([3, 24]).standard_normal((24, 128), dtype=np.float32) / np.sqrt(128)
    projected = [hidden.numpy() @ gaussian.astype(np.float64) for hidden in entering]
    return [points / np.linalg.norm(points, axis=-1, keepdims=True) for points in projected]


@pytest.fixture(scope="module")
def cosines(directions, layers) -> list[np.ndarray]:
    """(N, T, K) of each layer: every token against every stored centroid."""
    return [points @ topics_of(layer)["centroids"].T for points, layer in zip(directions, layers, strict=True)]


def test_labels_are_the_nearest_centroids_of_the_stream_that_enters_the_layer(layers, cosines):
    for layer, cosine in zip(layers, cosines, strict=True):
        found = topics_of(layer)
        assert found["labels"].shape == (6, 13)
        assert found["centroids"].shape == (K, 128)
        np.testing.assert_allclose(np.linalg.norm(found["centroids"], axis=1), 1, rtol=1e-6)
        assert np.array_equal(found["labels"], cosine.argmax(axis=-1))
        best_two = np.sort(cosine, axis=-1)[..., -2:]
        assert (best_two[..., 1] - best_two[..., 0]).min() > 1e-5  # no label is a matter of rounding
    assert not np.array_equal(topics_of(layers[0])["labels"], topics_of(layers[1])["labels"])


def test_in_layer_0_equal_tokens_are_one_topic(layers):
    labels = topics_of(layers[0])["labels"]
    for token in np.unique(TOKENS):
        assert len(np.unique(labels[TOKENS.numpy() == token])) == 1


def test_counts_are_those_of_the_labels(layers):
    for layer in layers:
        found = topics_of(layer)
        assert found["count"].tolist() == np.bincount(found["labels"].ravel(), minlength=K).tolist()
        assert found["count"].sum() == 6 * 13


def test_the_nearest_tokens_are_those_with_the_highest_cosine(layers, cosines):
    for layer, cosine in zip(layers, cosines, strict=True):
        found = topics_of(layer)
        assert found["nearest"].shape == (K, N_NEAREST, 2)
        for topic in range(K):
            members = cosine[found["labels"] == topic][:, topic]
            listed = found["nearest"][topic][: len(members)].astype(int)
            assert (found["nearest"][topic][len(members) :] == NOWHERE).all()
            assert len({tuple(place) for place in listed.tolist()}) == min(len(members), N_NEAREST)
            assert (found["labels"][listed[:, 0], listed[:, 1]] == topic).all()
            expected = np.sort(members)[::-1][:N_NEAREST]
            np.testing.assert_allclose(cosine[listed[:, 0], listed[:, 1], topic], expected, atol=1e-6)


def test_the_clusters_are_tighter_than_those_around_random_tokens(directions, cosines):
    rng = np.random.default_rng(0)
    for points, cosine in zip(directions, cosines, strict=True):
        flat = np.unique(points.reshape(-1, 128).round(9), axis=0)
        random = [(points @ flat[rng.choice(len(flat), K, replace=False)].T).max(axis=-1).mean() for _ in range(20)]
        assert cosine.max(axis=-1).mean() > max(random) + 0.02


def test_the_same_seed_gives_the_same_bytes_and_another_another_clustering(tiny_model, layers):
    for one, other, another in zip(layers, collect(tiny_model), collect(tiny_model, seed=4), strict=True):
        for name, values in topics_of(one).items():
            assert topics_of(other)[name].tobytes() == values.tobytes(), name
        pairs = zip(topics_of(one)["labels"].ravel(), topics_of(another)["labels"].ravel(), strict=True)
        assert len(set(pairs)) > K  # not the same partition under other numbers


def reduced(values: np.ndarray, labels: np.ndarray, k: int, reduce) -> np.ndarray:
    rows = values.reshape(-1, values.shape[-1])
    groups = [rows[labels.ravel() == topic] for topic in range(k)]
    return np.array([reduce(group) if len(group) else np.zeros(rows.shape[1]) for group in groups])


DEFINITIONS = {
    "topic_sum": lambda rows: rows.sum(axis=0),
    "topic_sum_abs": lambda rows: np.abs(rows).sum(axis=0),
    "topic_max_abs": lambda rows: np.abs(rows).max(axis=0),
}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_sums_of_every_tap_run_over_the_tokens_of_each_topic(layers, taps, name):
    for layer in layers:
        labels = topics_of(layer)["labels"]
        for tap in ("attn_in", "q_out", "k_out", "v_out", "attn_ctx", "mlp_in", "neuron", "mlp_mid", "gate_pre"):
            expected = reduced(taps[layer.index, tap], labels, K, DEFINITIONS[name])
            scale = np.abs(expected).max()
            np.testing.assert_allclose(layer.arrays[tap, name], expected, rtol=1e-5, atol=1e-5 * scale)


def same_partition(one: np.ndarray, other: np.ndarray) -> bool:
    pairs = set(zip(one.tolist(), other.tolist(), strict=True))
    return len(pairs) == len(set(one.tolist())) == len(set(other.tolist()))


@pytest.mark.parametrize("k", range(1, K + 1))
def test_merging_to_every_number_is_a_cut_of_the_dendrogram(layers, k):
    for layer in layers:
        found = topics_of(layer)
        topic = merged_topics(found["merges"], k)
        tree = linkage(found["centroids"].astype(np.float64), method="ward")
        assert same_partition(topic, cut_tree(tree, n_clusters=k)[:, 0])
        assert sorted(set(topic.tolist())) == list(range(k))
        firsts = [topic.tolist().index(t) for t in range(k)]
        assert firsts == sorted(firsts)  # numbered by the lowest micro-topic


def test_merging_by_hand():
    # 1 and 3 first; then 0 with them; then 2 and 4; then all
    merges = np.array([[1, 3], [0, 5], [2, 4], [6, 7]], dtype=np.int32)
    assert merged_topics(merges, 5).tolist() == [0, 1, 2, 3, 4]
    assert merged_topics(merges, 4).tolist() == [0, 1, 2, 1, 3]
    assert merged_topics(merges, 3).tolist() == [0, 0, 1, 0, 2]
    assert merged_topics(merges, 2).tolist() == [0, 0, 1, 0, 1]
    assert merged_topics(merges, 1).tolist() == [0, 0, 0, 0, 0]
    assert merged_topics(np.zeros((0, 2), dtype=np.int32), 1).tolist() == [0]


def test_fewer_tokens_than_clusters_is_refused(tiny_model):
    expected = r"collect\.topics\.micro_topics 9: there are 8 calibration tokens\. Lower it"
    with pytest.raises(ParamsError, match=expected):
        collect(tiny_model, tokens=TOKENS[:2, :4])


def test_more_clusters_than_a_label_can_tell_are_refused():
    assert TopicParams(micro_topics=65535, iterations=4, seed=0).micro_topics == 65535
    with pytest.raises(ParamsError, match=r"topics\.micro_topics: found 65536"):
        validate(TopicParams, {"micro_topics": 65536, "iterations": 4, "seed": 0}, "topics")


def test_as_many_clusters_as_distinct_tokens_or_more(tiny_model):
    tokens = torch.tensor([[5, 9, 5, 9, 5], [9, 9, 5, 5, 5]])
    first, _ = collect(tiny_model, tokens=tokens, micro_topics=4)
    found = topics_of(first)
    assert sorted(found["count"].tolist()) == [0, 0, 4, 6]  # the others are empty, not made up
    assert (found["nearest"][found["count"] == 0] == NOWHERE).all()


def test_one_cluster_holds_all(tiny_model):
    for layer in collect(tiny_model, micro_topics=1):
        found = topics_of(layer)
        assert found["count"].tolist() == [78]
        assert found["merges"].shape == (0, 2)


def test_a_stream_in_bfloat16_is_projected_in_float32():
    params = TopicParams(micro_topics=K, iterations=4, seed=3)
    entering = torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = projected(entering, [slice(0, 2), slice(2, 3)], params, torch.device("cpu"))
    gaussian = np.random.default_rng([3, 24]).standard_normal((24, 128), dtype=np.float32) / np.sqrt(128)
    expected = entering.double().numpy() @ gaussian.astype(np.float64)
    assert found.dtype == torch.float32
    assert np.allclose(found, expected, rtol=0, atol=1e-5)  # a product in bfloat16 is off by 1e-2


def test_the_projection_follows_the_hidden_size_and_the_seed():
    assert projection(24, 3).shape == (24, 128)
    assert projection(40, 3).shape == (40, 128)
    # not one projection cut to size
    assert not torch.allclose(projection(24, 3), projection(40, 3)[:24])
    assert not torch.allclose(projection(24, 3), projection(24, 4))
    lengths = projection(600, 0).norm(dim=1)  # of unit vectors: 1 on average
    assert lengths.mean().item() == pytest.approx(1, abs=0.02)


def test_the_sign_of_the_stream_counts():
    """Opposite directions are two topics: magnitudes alone would make them one."""
    rng = np.random.default_rng(0)
    direction = rng.standard_normal(128)
    signs = np.array([[1, -1, 1, 1, -1], [-1, -1, 1, -1, 1]])
    points = signs[..., None] * direction * rng.uniform(0.2, 7, (2, 5, 1)) + 1e-3 * rng.standard_normal((2, 5, 128))
    params = TopicParams(micro_topics=2, iterations=4, seed=0)
    found = find_topics(torch.from_numpy(points.astype(np.float32)), params, layer=0)
    labels = found.labels.numpy()
    assert np.array_equal(labels == labels[0, 0], signs == 1)  # and the lengths do not


def test_a_residual_stream_that_is_not_finite_is_named():
    points = torch.ones(1, 4, 128)
    points[0, 2, 7] = torch.nan
    with pytest.raises(NotFiniteError, match="layer 3: the residual stream that enters it is NaN or infinite"):
        find_topics(points, TopicParams(micro_topics=2, iterations=4, seed=0), layer=3)
