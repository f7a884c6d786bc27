"""Captions written by a model for the images of a dataset.

- `caption`: all of it in one call, and what is refused before the model is loaded.
- `shards`: the model's answers, one for each distinct image, as shards.
- `output`: the folder of the new dataset, from which an unfinished run resumes.
"""
