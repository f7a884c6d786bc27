"""Recipes: YAML files that configure a run.

schema.py    every key, its type and default
load.py      from a name or a file to the recipe of one phase; its errors as one sentence
*.yaml       the shipped recipes
"""

from aligntrain.recipes.load import dump, load_recipe, loads, recipe_names
from aligntrain.recipes.schema import PHASES, Phase, Recipe

__all__ = ["PHASES", "Phase", "Recipe", "dump", "load_recipe", "loads", "recipe_names"]
