"""Options that come from the settings, so that flag, environment and help never differ."""

from typing import Annotated, Any, TypeVar

import typer
from pydantic import ValidationError
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings

from sekali.settings import PublisherSettings, environment_names, explain

Settings = TypeVar("Settings", bound=BaseSettings)


def setting_option(model: type[BaseSettings], field_name: str, flag: str, *, panel: str | None = None) -> Any:
    """Return a typer option for a setting. Its default is None: not given, so that the environment counts."""
    field = model.model_fields[field_name]
    default = "none" if field.default in (None, "", PydanticUndefined) else field.default
    names = ", ".join(environment_names(model, field_name))
    return typer.Option(
        flag,
        help=f"{field.description} Default: {default}. Environment: {names}.",
        show_default=False,
        rich_help_panel=panel,
    )


def load_settings(model: type[Settings], **flags: Any) -> Settings:
    """Return the settings: flags that were given (not None), else the environment, else the defaults.

    Raises:
        typer.BadParameter: a value is not allowed.

    """
    try:
        return model(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        raise typer.BadParameter(explain(error)) from None


Url = Annotated[str | None, setting_option(PublisherSettings, "aggregator_url", "--url")]
Json = Annotated[bool, typer.Option("--json", help="JSON for programs, not text for people.")]
