"""Extension of griffe: the Python reference shows the arguments that a stage is called with.

A stage is written as a function of its settings and called with their fields (`called_with`). Read
from the source alone, it has one argument, `settings`.
"""

from __future__ import annotations

import ast
import html
from typing import Any

import griffe

DECORATOR = "aligncurate.settings.called_with"


class SettingsArguments(griffe.Extension):
    """Gives each stage the parameters of its settings, and their help as descriptions."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Change the stages of `pkg`, if they are in it."""
        if pkg.name == "aligncurate":
            for module in pkg["stages"].modules.values():
                for function in module.functions.values():
                    _show_arguments(function, module)


def _show_arguments(function: griffe.Function, module: griffe.Module) -> None:
    for decorator in function.decorators:
        call = decorator.value
        if isinstance(call, griffe.ExprCall) and call.function.canonical_path == DECORATOR:
            settings = module[str(call.arguments[0])].final_target
            parameters = [p for p in settings.parameters if p.name != "self"]
            described = [_describe(parameter, settings.module) for parameter in parameters]
            function.parameters = griffe.Parameters(*parameters)
            if function.docstring:
                shown = griffe.DocstringSectionParameters(described)
                function.docstring.parsed.insert(1, shown)


def _describe(parameter: griffe.Parameter, module: griffe.Module) -> griffe.DocstringParameter:
    """Take the help out of the annotation of `parameter`, which may be a name in `module`."""
    annotation, text = parameter.annotation, ""
    if isinstance(annotation, griffe.ExprName) and annotation.name in module.attributes:
        annotation = module.attributes[annotation.name].value
    if isinstance(annotation, griffe.ExprSubscript) and str(annotation.left) == "Annotated":
        assert isinstance(annotation.slice, griffe.ExprTuple)
        annotation, help_text, *_ = annotation.slice.elements
        text = html.escape(ast.literal_eval(str(help_text)))
    parameter.annotation = annotation
    return griffe.DocstringParameter(
        parameter.name, description=text, annotation=annotation, value=_value(parameter)
    )


def _value(parameter: griffe.Parameter) -> str | None:
    return None if parameter.default is None else str(parameter.default)
