"""Recipes: YAML files that configure a run.

Where things are:

schema.py    what a recipe can say
load.py      from a name or a file to the recipe of one phase
problems.py  what is wrong with one, as a sentence
*.yaml       the recipes that ship
"""

from aligntrain.recipes.load import dump, load_recipe, loads, recipe_names
from aligntrain.recipes.schema import PHASES, Phase, Recipe

__all__ = ["PHASES", "Phase", "Recipe", "dump", "load_recipe", "loads", "recipe_names"]
