"""What the server counts, in Prometheus' terms."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The counters, each with its help text; one object a server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"llava_s2_{name}", what, labels, registry=self._registry)

        def gauge(name: str, what: str) -> Gauge:
            return Gauge(f"llava_s2_{name}", what, registry=self._registry)

        def seconds(name: str, what: str) -> Histogram:
            return Histogram(f"llava_s2_{name}_seconds", what, buckets=_SECONDS, registry=self._registry)

        self.responses = counter("responses", "HTTP responses", "path", "status")
        self.cancelled = counter("cancelled", "Answers stopped before their end", "reason")
        self.waiting = gauge("waiting", "Requests that wait for a place in the batch")
        self.running = gauge("running", "Answers in the running batch")
        self.request_time = seconds("request", "From a chat request to the end of its answer")
        self.queue_time = seconds("queue", "From a chat request to its place in the batch")
        self.first_token_time = seconds("first_token", "From a chat request to its first token")
        self.tower_time = seconds("tower", "Vision tower and projector, an image")
        self.prompt_tokens = counter("prompt_tokens", "Tokens read, those of images among them")
        self.image_tokens = counter("image_tokens", "Tokens of images read")
        self.completion_tokens = counter("completion_tokens", "Tokens generated")
        self.batch_size = Histogram(
            "llava_s2_batch_size",
            "Answers continued by one step of the model",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=self._registry,
        )
        self.cache_hits = counter("image_cache_hits", "Images whose features were still known")
        self.cache_misses = counter("image_cache_misses", "Images that went through the tower")
        self.cache_bytes = gauge("image_cache_bytes", "Memory of the kept features")

    def text(self) -> bytes:
        """All of it in the exposition format, version 0.0.4."""
        return generate_latest(self._registry)
