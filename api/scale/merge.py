"""Lists, steps and metrics of all replicas, merged into one answer for the cluster."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

COUNTED_BY_DOOR = "numllama_requests"  # a request counts once, where the client sent it


def merged_ps(replicas: Iterable[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Merge lists of /api/ps: a model that several replicas have loaded is one entry, with the sum of their memory.

    `replicas` says how many have it, if it is more than one.  The entry with the longest lifetime is first.
    """
    merged: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in (entry for loaded in replicas for entry in loaded):
        key = entry["name"], entry["digest"]
        if not (known := merged.get(key)):
            merged[key] = dict(entry)
            continue
        later = max(known, entry, key=_expires_at)
        merged[key] = {**later, "size": known["size"] + entry["size"], "replicas": known.get("replicas", 1) + 1}
    return sorted(merged.values(), key=_expires_at, reverse=True)


def _expires_at(entry: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(entry["expires_at"])


def merged_steps(replicas: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Merge the steps of schedulers by model.  Where several replicas have loaded one, their names follow its own."""
    n_loaded = [name for _, steps in replicas for name in steps]
    return {
        f"{name} ({replica})" if n_loaded.count(name) > 1 else name: line
        for replica, steps in replicas
        for name, line in steps.items()
    }


def merged_metrics(door: bytes, replicas: Iterable[tuple[str, str]]) -> bytes:
    """Merge metrics in Prometheus' text format: the door's as they are, a replica's with the label `replica`."""
    families: dict[str, Metric] = {}
    for family in text_string_to_metric_families(door.decode()):
        families[family.name] = family
    for replica, text in replicas:
        for family in text_string_to_metric_families(text):
            if family.name.startswith(COUNTED_BY_DOOR):
                continue
            known = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                known.samples.append(sample._replace(labels={**sample.labels, "replica": replica}))
    registry = CollectorRegistry()
    registry.register(_Families(families.values()))
    return generate_latest(registry)


class _Families:
    """A collector of metrics that are known."""

    def __init__(self, families: Iterable[Metric]):
        self._families = list(families)

    def collect(self) -> Iterator[Metric]:
        """Yield them."""
        yield from self._families
