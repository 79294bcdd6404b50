"""`--config`: a YAML file, or a recipe of published settings, as the defaults of a command."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import click
import yaml

from depure.cli.values import shown

_LARGEST = 100_000  # bytes; a configuration has some dozens of lines
_PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "timestamp")}
_RECIPE = "depure.recipe"
_MODELS = ("data", "classifier", "denoiser")
_BUNDLED = ("digits", "digits-adversarial", "digits-addt", "digits-control")


class _Loader(yaml.SafeLoader):
    """Without aliases: a few bytes of them stand for gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases have no place here: write the value out")
        return super().compose_node(parent, index)


def recipe_names() -> list[str]:
    """Published settings that `--config` knows by name."""
    found = files("depure.recipes").iterdir()
    return sorted(f.name.removesuffix(".yaml") for f in found if f.name.endswith(".yaml"))


def load_config(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Make the file's entries the defaults of this command; the command line wins."""
    if value is None:
        return None
    if value in recipe_names():
        text = (files("depure.recipes") / f"{value}.yaml").read_text(encoding="utf-8")
        ctx.meta[_RECIPE] = value
    else:
        text = _read(value)
    settings: dict[str, object] = {**_entries(text, shown(value))}
    known = {p.name for p in ctx.command.params} - {"config"}
    unknown = sorted(set(settings) - known)
    if unknown:
        names = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise click.BadParameter(
            f"{shown(value)} sets {names[:200]}, which this command does not know; "
            f"options: {', '.join(sorted(o for o in known if o))}"
        )
    repeatable = {p.name for p in ctx.command.params if getattr(p, "multiple", False)}
    for name in repeatable & settings.keys():
        settings[name] = [settings[name]]
    ctx.default_map = {**(ctx.default_map or {}), **settings}
    return value


def given_with_recipe(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """With a recipe for other images, refuse what was made for the bundled digits.

    Raises:
        click.BadParameter: the option names a bundled model or data set, and --config a recipe.
    """
    recipe = ctx.meta.get(_RECIPE)
    if recipe is not None and value in _BUNDLED:
        names = [p.name for p in ctx.command.params if p.name in _MODELS]
        needed = ", ".join(f"--{name}" for name in _MODELS if name in names)
        raise click.BadParameter(
            f"the recipe {recipe} is for CIFAR-10, not for the bundled digits: give {needed}"
        )
    return value


def _read(name: str) -> str:
    path = Path(name)
    try:
        if not path.is_file():
            known = ", ".join(recipe_names())
            raise click.BadParameter(f"{shown(name)} is no file and no recipe; recipes: {known}")
        if path.stat().st_size > _LARGEST:
            raise click.BadParameter(
                f"{shown(name)} has more than {_LARGEST:,} bytes: expected `option: value` lines"
            )
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise click.BadParameter(f"{shown(name)} is not UTF-8 text") from error
    except (OSError, ValueError) as error:  # too long a name, no permission, a null byte
        reason = getattr(error, "strerror", None) or "no name of a file"
        raise click.BadParameter(f"{shown(name)} cannot be read ({reason})") from error


def _entries(text: str, source: str) -> dict[str, str]:
    """The lines of a configuration, every value as one would type it."""
    try:
        node = yaml.compose(text, _Loader)
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())[:300]
        raise click.BadParameter(f"{source} is not valid YAML: {problem}") from error
    except (RecursionError, ValueError, OverflowError) as error:
        raise click.BadParameter(f"{source} is not valid YAML: too deep, or damaged") from error
    if not isinstance(node, yaml.MappingNode):
        raise click.BadParameter(f"{source} must hold `option: value` lines")
    found: dict[str, str] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise click.BadParameter(f"{source} has a line without a name: write `option: value`")
        name = str(key.value).replace("-", "_")
        if name in found:
            raise click.BadParameter(f"{source} sets {shown(key.value)} twice: leave one out")
        found[name] = _as_typed(shown(key.value).strip("'"), value, source)
    return found


def _as_typed(name: str, node: yaml.Node, source: str) -> str:
    """A value as one would type it, so that the option's own parser judges it."""
    items = node.value if isinstance(node, yaml.SequenceNode) else [node]
    for item in (node, *items):
        tag = str(item.tag)
        if tag.startswith("tag:yaml.org,2002:python") or tag.startswith("!"):
            raise click.BadParameter(f"{source} is not valid YAML: {name} has the tag {tag[:60]}")
    for item in items:
        if not isinstance(item, yaml.ScalarNode) or item.tag not in _PLAIN:
            raise click.BadParameter(f"{source}: {name} has no single value: write `{name}: VALUE`")
        if "\0" in item.value:
            raise click.BadParameter(f"{source}: {name} holds a null byte: leave it out")
    return ",".join(item.value for item in items)


config = click.option(
    "--config",
    is_eager=True,
    expose_value=False,
    callback=load_config,
    metavar="FILE|RECIPE",
    help=(
        "YAML file of `option: value` lines (names as here), or a recipe of published settings: "
        + ", ".join(recipe_names())
        + ". The command line wins."
    ),
)
