"""Leaving freely: a trained model in forms that other programs read, each with a model card.

- `leave`: the call behind `aligntrain export`.
- `llava`: transformers' own LLaVA, where no alignment vectors are used.
- `llm`: the language model alone, as any causal LM.

A run's own `export/`, in this program's form, is written by `aligntrain.train.save`.
"""
