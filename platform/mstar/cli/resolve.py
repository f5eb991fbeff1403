"""Command line → config: a recipe fills in the fields, flags override them.

A config is a frozen dataclass whose fields carry a docstring with meaning and unit. A nested config
annotated `Annotated[GridConfig, tyro.conf.arg(name="")]` shares its fields' flags with the outer
one: `--target-mpp`, not `--grid.target-mpp`. A recipe returns a config; fields that the caller must
give are `tyro.MISSING` in it.
"""

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import tyro

from mstar.errors import ConfigError

_POSITIONAL = get_args(tyro.conf.Positional[str])[1]
OPTIONS = (tyro.conf.FlagCreatePairsOff,)  # `--dry-run`, without a `--no-dry-run`


@dataclass(frozen=True, slots=True, kw_only=True)
class JobParts:
    """What a job's command line is made of: a config class, or recipes for it.

    recipes: name → function returning a full config; its docstring's first line is its help.
    default: recipe used when the caller names none.
    config: config class of a job without recipes.
    """

    recipes: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    default: str = ""
    config: type[Any] | None = None

    @property
    def positional(self) -> bool:
        """Whether the config has a field that is given without a flag."""
        return self.config is not None and any(
            is_positional(hint)
            for hint in get_type_hints(self.config, include_extras=True).values()
        )


def resolve(job: str, argv: Sequence[str], parts: JobParts, *, summary: str = "") -> Any:
    """The config that a command line asks for.

    argv: after the job's name.
    `--help` and values of a wrong type end the program, as tyro does, with its message; an unknown
    recipe or flag raises ConfigError with the nearest valid ones.
    """
    arguments = list(argv)
    recipe = take_recipe(job, arguments, parts)
    config_class, options = parser_options(job, recipe, parts, summary)
    if not {"-h", "--help"} & set(arguments):
        check_flags(job, arguments, list(known_flags(config_class)))
    return tyro.cli(config_class, args=arguments, **options)


def take_recipe(job: str, arguments: list[str], parts: JobParts) -> str:
    """Removes the recipe's name from the front of the arguments; the default when there is none."""
    if parts.positional or not arguments or arguments[0].startswith("-"):
        return parts.default
    name = arguments.pop(0)
    if name in parts.recipes:
        return name
    if not parts.recipes:
        raise ConfigError(f"mstar {job} takes no recipe, got {name!r}; see mstar {job} --help")
    raise ConfigError(
        f"mstar {job} has no recipe {name!r}; nearest: {closest(name, parts.recipes)}; "
        f"all: {', '.join(parts.recipes)}"
    )


def parser_options(
    job: str, recipe: str, parts: JobParts, summary: str
) -> tuple[type[Any], dict[str, Any]]:
    """The config class, and what tyro is to be told besides."""
    lines = [summary]
    options: dict[str, Any] = {"prog": f"mstar {job}", "config": OPTIONS}
    if parts.recipes:
        options["default"] = parts.recipes[recipe]()
        lines += ["", f"usage: mstar {job} [RECIPE] --flag value …", "", "recipes:"]
        lines += [describe_recipe(name, parts) for name in parts.recipes]
        lines += ["", f"The defaults below are those of the recipe {recipe!r}."]
    options["description"] = "\n".join(lines)
    config_class = parts.config or type(options["default"])
    return config_class, options


def describe_recipe(name: str, parts: JobParts) -> str:
    """One line of help on a recipe."""
    text = (parts.recipes[name].__doc__ or "").strip().split("\n")[0]
    return f"  {name}: {text}{' (default)' if name == parts.default else ''}"


def known_flags(config_class: type[Any], prefix: str = "--") -> Iterator[str]:
    """Every flag that a config class takes, as `--target-mpp`."""
    hints = get_type_hints(config_class, include_extras=True)
    for part in dataclasses.fields(config_class):
        if is_positional(hints[part.name]):
            continue
        kind, name = kind_and_name(hints[part.name], part.name)
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            yield from known_flags(kind, f"{prefix}{name}." if name else prefix)
        else:
            yield prefix + name
        if kind is bool:
            yield f"{prefix}no-{name}"  # turns off what a recipe has turned on


def is_positional(hint: Any) -> bool:
    """Whether a field is given by its place, without a flag."""
    return _POSITIONAL in get_args(hint)[1:]


def kind_and_name(hint: Any, field_name: str) -> tuple[Any, str]:
    """A field's type without its notes, and its name on the command line."""
    kind, *notes = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    names = [note.name for note in notes if getattr(note, "name", None) is not None]
    return kind, names[0] if names else field_name.strip("_").replace("_", "-")


def check_flags(job: str, arguments: Iterable[str], known: Sequence[str]) -> None:
    """Raises ConfigError for a flag that does not exist, naming the nearest that do."""
    for argument in arguments:
        flag = argument.split("=", 1)[0].replace("_", "-")
        if flag.startswith("--") and len(flag) > 2 and flag not in known:
            raise ConfigError(
                f"mstar {job} has no flag {flag}; nearest: {closest(flag, known)}; "
                f"all of them: mstar {job} --help"
            )


def closest(word: str, known: Iterable[str]) -> str:
    """The three known words nearest to a word, best first."""
    return ", ".join(difflib.get_close_matches(word, list(known), n=3, cutoff=0.0))
