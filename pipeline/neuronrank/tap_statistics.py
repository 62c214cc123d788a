"""What scoring reads of one tap of one layer. Needs no torch."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neuronrank.derived import ADDED, CLASSES, TOPICS, stored_as
from neuronrank.document_frequency import DEFAULT_QUANTILE, active_means, document_frequency
from neuronrank.errors import MismatchError, UnknownName
from neuronrank.sketch import EDGES, MagnitudeSketch
from neuronrank.statistics_schema import TOTALS
from neuronrank.tap_names import base, expert
from neuronrank.token_classes import ClassMoments, fewer_classes
from neuronrank.topic_merging import TopicSums, merged_count, merged_sums

if TYPE_CHECKING:
    from neuronrank.statistics_store import Statistics

_RUN = "dvc repro collect"


@dataclass(frozen=True)
class TapStatistics:
    """One tap of one layer, over the first `n_windows` calibration windows.

    A document is what of a window reaches the tap: all of it, or the tokens that are routed to the tap's expert.
    """

    where: str
    """For messages, for example `layer 3, tap 'neuron'`."""
    n_windows: int
    window_tokens: int
    _store: "Statistics"
    _layer: int
    _tap: str
    _known: dict[Any, NDArray[np.float64]] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def _routed(self) -> NDArray[np.int64] | None:
        """(n_windows,) tokens that are routed to the tap's expert; None where there are no experts."""
        if expert(self._tap) is None:
            return None
        return self._read("n_tokens")[: self.n_windows].astype(np.int64)

    @property
    def n_documents(self) -> int:
        """Documents with tokens."""
        return self.n_windows if self._routed is None else int(np.count_nonzero(self._routed))

    @property
    def n(self) -> int:
        """Tokens of all documents."""
        return self.n_windows * self.window_tokens if self._routed is None else int(self._routed.sum())

    def remembered(
        self, compute: Callable[["TapStatistics", Any], NDArray[np.float64]], params: Any
    ) -> NDArray[np.float64]:
        """Return compute(self, params), computed when it is first asked for.

        Args:
            compute: tap and parameters -> values.
            params: hashable.
        """
        if (compute, params) not in self._known:
            self._known[compute, params] = compute(self, params)
        return self._known[compute, params]

    def documents(self, statistic: str) -> NDArray[np.float32]:
        """Return (D, C) sums over the tokens of each document that has any.

        Args:
            statistic: `sum`, `sum_abs`, `sum_sq` or `max_abs`.

        Raises:
            ArtifactError: the artifact does not hold this statistic of this tap.
        """
        found = self._read(statistic)[: self.n_windows]
        return found if self._routed is None else found[self._routed > 0]

    def document_means(self, statistic: str) -> NDArray[np.float64]:
        """Return (D, C) means over the tokens of each document that has any; arguments and errors of `documents`."""
        n_tokens = self.window_tokens if self._routed is None else self._routed[self._routed > 0, None]
        return np.asarray(self.documents(statistic).astype(np.float64) / n_tokens)

    def total(self, statistic: str) -> NDArray[np.float64]:
        """Return (C,) sums over all tokens of the documents.

        Args:
            statistic: `sum`, `sum_abs` or `sum_sq`.

        Raises:
            ArtifactError: the artifact does not hold this statistic of this tap.
            UnknownName: no artifact has totals of it.
        """
        if statistic not in TOTALS:
            raise UnknownName(f"{self.where}: no totals of {statistic!r}; there are: {', '.join(TOTALS)}")
        if self._has_all:
            return np.asarray(self._read(TOTALS[statistic]))
        return np.asarray(self.documents(statistic).sum(axis=0, dtype=np.float64))

    def l2_norm(self) -> NDArray[np.float64]:
        """Return (C,) ||a||_2 over all tokens, activation.

        Of an expert's tap that of as many tokens as the calibration has, each like those that were routed to it: where
        weights of several modules compete, how many those were must not decide.

        Raises:
            ArtifactError: the artifact does not hold the sums of squares.
        """
        norm = np.sqrt(self.total("sum_sq"))
        n_all = self.n_windows * self.window_tokens
        return norm if self._routed is None else np.asarray(norm * np.sqrt(n_all / self.n))

    def document_frequency(self, quantile: float) -> NDArray[np.int64]:
        """Return (C,) counts of documents whose mean |a| reaches the quantile pooled over the tap.

        Raises:
            ArtifactError: the artifact does not hold `sum_abs` of every document of this tap.
        """
        if quantile == DEFAULT_QUANTILE and self._has_all:
            return self._read("df_count").astype(np.int64)
        return document_frequency(active_means(self._read("sum_abs")[: self.n_windows], self._routed), quantile)

    def n_positive(self) -> NDArray[np.int64]:
        """Return (C,) counts of tokens with a > 0.

        Raises:
            ArtifactError: the artifact does not count this tap.
            MismatchError: fewer documents were asked for than were counted.
        """
        return self._read_whole("n_positive").astype(np.int64)

    def sketch(self) -> MagnitudeSketch:
        """Return the distribution of |a| over all tokens.

        Raises:
            ArtifactError: the artifact does not sketch this tap.
            MismatchError: fewer documents were asked for than were counted.
        """
        count = self._read_whole("sketch_count")
        return MagnitudeSketch(count, self.total("sum_abs"))

    def of_sketch(self, compute: Callable[..., NDArray[Any]], **settings: Any) -> NDArray[Any]:
        """Return compute(sketch, **settings), (C,); at default settings without reading the sketch.

        Raises:
            ArtifactError: the artifact does not sketch this tap.
            MismatchError: fewer documents were asked for than were counted.
        """
        array = stored_as(compute, settings)
        return compute(self.sketch(), **settings) if array is None else self._read_whole(array)

    def n_below(self, edge: int) -> NDArray[np.int64]:
        """Return (C,) counts of tokens with a < -EDGES[edge].

        Raises:
            ArtifactError: some a is that low, and the artifact does not count negative values of this tap apart.
            MismatchError: fewer documents were asked for than were counted.
        """
        lowest = self._read_whole("total_min")
        if lowest.min() >= -EDGES[edge]:
            return np.zeros(len(lowest), dtype=np.int64)
        return np.asarray(self._read("sketch_negative_count")[:, edge + 1 :].sum(axis=1))

    def classes(self, n: int) -> ClassMoments:
        """Return the moments of the n most frequent token classes and of all other tokens.

        Raises:
            ArtifactError: the artifact holds no classes of this tap.
            MismatchError: more classes than are stored, or fewer documents than were counted.
        """
        sums, count = self._read_whole("class_sum"), self._class_count()
        if n > len(count) - 1:
            raise MismatchError(
                f"{self._store.directory}: holds {len(count) - 1} token classes, {n} were asked for. "
                f"Raise collect.classes (there may be fewer distinct tokens) and run: {_RUN}"
            )
        return fewer_classes(ClassMoments.of_stored(count, sums, self._read("class_centred_sq")), n)

    def of_classes(self, compute: Callable[..., NDArray[Any]], n: int, **settings: Any) -> NDArray[Any]:
        """Return compute(moments of n classes, **settings), (C,); at default settings without reading the moments.

        Raises:
            ArtifactError: the artifact holds no classes of this tap.
            MismatchError: more classes than are stored, or fewer documents than were counted.
        """
        array = stored_as(compute, settings)
        held = self._store.manifest["arrays"].get(base(self._tap), ())
        if array in ADDED and array not in held and "class_sum" in held:
            array = None
        found = None if array is None else self._read_whole(array)
        if found is None or n != min(CLASSES, len(self._store.class_count()) - 1):
            return compute(self.classes(n), **settings)
        return found

    def topics(self, k: int, statistic: str) -> TopicSums:
        """Return sums by topic, micro-topics merged to k.

        Args:
            k: how many topics.
            statistic: `sum`, `sum_abs` or `max_abs`.

        Raises:
            ArtifactError: the artifact holds no topics of this tap.
            MismatchError: more topics than are stored, or fewer documents than were counted.
        """
        micro = self._read_whole(f"topic_{statistic}")
        if k > len(micro):
            raise MismatchError(
                f"{self._store.directory}: holds {len(micro)} micro-topics, {k} topics were asked for. "
                f"Raise collect.topics.micro_topics and run: {_RUN}"
            )
        merges, count = self._topics()
        return merged_sums(merges, count, micro, k, statistic)

    def topic_count(self, k: int) -> NDArray[np.int64]:
        """Return (k,) tokens of each topic, micro-topics merged to k of them at most.

        Raises:
            ArtifactError: the artifact holds no topics.
        """
        merges, count = self._topics()
        return merged_count(merges, count, k)

    def of_topics(self, compute: Callable[..., NDArray[Any]], k: int, **settings: Any) -> NDArray[Any]:
        """Return compute(sums of |a| of k topics, **settings), (C,); at default settings without reading those sums.

        Raises:
            ArtifactError: the artifact holds no topics of this tap.
            MismatchError: more topics than are stored, or fewer documents than were counted.
        """
        array = stored_as(compute, settings)
        found = None if array is None else self._read_whole(array)
        if found is None or k != min(TOPICS, len(self._topics()[1])):
            return compute(self.topics(k, "sum_abs"), **settings)
        return found

    def _topics(self) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Return how micro-topics merge, and the tokens of each."""
        merges, count = (self._store.layer_values(self._layer, "topics", name) for name in ("merges", "count"))
        return merges, count if self._routed is None else self._read("topic_count")

    def _class_count(self) -> NDArray[np.int64]:
        """Return (M + 1,) tokens of each class and of all others."""
        return self._store.class_count() if self._routed is None else self._read("class_count").astype(np.int64)

    @property
    def _has_all(self) -> bool:
        """Whether no window is left out."""
        return self.n_windows == self._store.n_documents

    def _read(self, array: str) -> NDArray[Any]:
        return self._store.layer_values(self._layer, self._tap, array)

    def _read_whole(self, array: str) -> NDArray[Any]:
        """Read an array that has no document axis."""
        if not self._has_all:
            raise MismatchError(
                f"{self._store.directory}: {self._tap}/{array} counts all {self._store.n_documents} documents, "
                f"nsamples {self.n_windows} cannot be taken from it. Leave nsamples out, or set "
                f"prepare.calibration_windows: {self.n_windows} and run: {_RUN}"
            )
        return self._read(array)
