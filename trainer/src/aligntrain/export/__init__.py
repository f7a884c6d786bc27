"""Trained models in formats that other programs read, each with a model card.

A run's own `export/`, in this program's format, is written by `aligntrain.train.save`.
"""
