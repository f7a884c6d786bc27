"""Train the adaptive-alignment multimodal LLM on levelled shards."""

__all__: list[str] = []
