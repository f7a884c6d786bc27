"""Prometheus metrics at `/metrics`."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Metrics of one server, in a registry of its own."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        self.requests = Counter(
            "aligntrain_requests", "Chat requests by HTTP status.", ["status"], registry=registry
        )
        self.prompt_tokens = Counter(
            "aligntrain_prompt_tokens", "Tokens read, places of images included.",
            registry=registry,
        )  # fmt: skip
        self.new_tokens = Counter("aligntrain_new_tokens", "Tokens written.", registry=registry)
        self.in_flight = Gauge(
            "aligntrain_requests_in_flight", "Chat requests that wait or are answered.",
            registry=registry,
        )  # fmt: skip
        self.rows = Gauge("aligntrain_rows", "Answers that are being written.", registry=registry)
        self.cached_tokens = Gauge(
            "aligntrain_cached_tokens", "Tokens whose keys and values are kept, padding included.",
            registry=registry,
        )  # fmt: skip
        self.step_rows = Histogram(
            "aligntrain_step_rows", "Answers that got a token in one step of the model.",
            buckets=_ROWS, registry=registry,
        )  # fmt: skip
        self.first_token = Histogram(
            "aligntrain_first_token_seconds", "From a request's arrival to its answer's begin.",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "aligntrain_request_seconds", "From a request's arrival to its answer's end.",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self._registry)
