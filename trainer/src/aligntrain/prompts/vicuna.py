"""Vicuna v1's system sentence, with which LLaVA-1.5 and AlignGPT open every conversation."""

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
