"""Encoders that are not in the table: `--encoder module:function`.

The function takes no argument and returns an `EncoderSpec`. Whatever the model's own code wants
(another class, CLS + mean token, `encode_image`) goes into the spec's `build` and `forward`;
weights, hashing, strict loading, transform and provenance stay ours. Examples:
platform/docs/encoders.md.

This runs the named code, in the driver and in every worker: name only modules that you trust.
"""

import dataclasses
import hashlib
import importlib
import inspect
from pathlib import Path
from types import ModuleType

from mstar.errors import ConfigError
from mstar.models.encoder_spec import EncoderSpec

CONTRACT = "a function without arguments that returns an mstar.models.encoder_spec.EncoderSpec"


def is_external(name: str) -> bool:
    """Whether an encoder name has the form `module:function`."""
    module, colon, function = name.partition(":")
    dotted = [*module.split("."), function]
    return bool(colon) and module != "timm" and all(part.isidentifier() for part in dotted)


def load_external(name: str) -> EncoderSpec:
    """The spec that `module:function` returns, under that name, with a hash of its source file.

    Raises:
        ConfigError: the module cannot be imported, or the function is not what the contract says.
    """
    module_name, _, function_name = name.partition(":")
    module = _import(name, module_name)
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(
            f"--encoder {name}: {module_name} has no {function_name}; want {CONTRACT}"
        )
    if any(_is_required(p) for p in inspect.signature(function).parameters.values()):
        raise ConfigError(f"--encoder {name}: {function_name} wants arguments; want {CONTRACT}")
    spec = function()
    if not isinstance(spec, EncoderSpec):
        raise ConfigError(f"--encoder {name}: returned {type(spec).__name__}; want {CONTRACT}")
    return dataclasses.replace(spec, name=name, code_sha256=_code_sha256(module))


def _import(name: str, module_name: str) -> ModuleType:
    """Import the module, saying on failure how the workers find one."""
    try:
        return importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"--encoder {name}: cannot import {module_name} ({error}). Install it in the "
            "environment, or put its folder on PYTHONPATH; on a cluster it must be importable on "
            "every node (Ray's --working-dir or py_modules)."
        ) from error


def _is_required(parameter: inspect.Parameter) -> bool:
    """Whether a call must give this parameter."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return parameter.default is inspect.Parameter.empty and parameter.kind not in variadic


def _code_sha256(module: ModuleType) -> str:
    """Hash of the module's file, so that edited code is not taken for the same encoder."""
    file = getattr(module, "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""
