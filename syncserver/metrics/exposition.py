"""Metrics in the text that Prometheus reads; the only file that knows prometheus_client."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric as Family
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from syncserver.metrics.measures import METRICS, PREFIX, Buckets, Sample


def exposition(samples: Sequence[Sample], accept: str) -> tuple[bytes, str]:
    """Return the text of samples and its content type, of those that ``accept`` names."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Scrape(samples))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Scrape(Collector):
    """The samples of one scrape, those of a metric together."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._by_name: dict[str, list[Sample]] = {name: [] for name in METRICS}
        for sample in samples:
            self._by_name[sample.name].append(sample)

    def collect(self) -> Iterator[Family]:
        """Give the families that have samples."""
        for name, samples in self._by_name.items():
            if samples:
                yield _family(name, samples)


def _family(name: str, samples: Iterable[Sample]) -> Family:
    metric = METRICS[name]
    whole = PREFIX + name
    family = Family(whole.removesuffix("_total"), metric.help, metric.kind)
    for _, labels, value in samples:
        if isinstance(value, Buckets):
            _add_buckets(family, whole, dict(labels), value)
        else:
            family.add_sample(whole, dict(labels), float(value))
    return family


def _add_buckets(family: Family, name: str, labels: dict[str, str], value: Buckets) -> None:
    bounds = [*map(floatToGoString, value.bounds), "+Inf"]
    for bound, count in zip(bounds, value.cumulative, strict=True):
        family.add_sample(f"{name}_bucket", {**labels, "le": bound}, count)
    family.add_sample(f"{name}_count", labels, value.cumulative[-1])
    family.add_sample(f"{name}_sum", labels, value.seconds)
