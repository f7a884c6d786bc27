"""Trained models in formats that other programs read, each with a model card.

- `model`: `export_model`, the call behind `aligntrain export`.
- `llava`: transformers' own LLaVA, where no alignment vectors are used.
- `llm`: the language model alone, as any causal LM.

A run's own `export/`, in this program's format, is written by `aligntrain.train.save`.
"""
