"""What the groups of a feed's settings have in common."""

import dagster as dg
from pydantic import BaseModel


class Described(dg.Model, dg.Resolvable):
    """Settings that explain themselves in the UI and in scaffolded files."""

    @classmethod
    def model(cls) -> type[BaseModel]:
        """The model behind the YAML, with the descriptions that Dagster drops from fields with a default."""
        derived = super().model()
        for name, field in cls.model_fields.items():
            shown = derived.model_fields[field.alias or name]
            shown.description = shown.description or field.description
            # Limits on a number would be applied to a template's text; the class itself checks what it stands for.
            shown.metadata = []
        derived.model_rebuild(force=True)
        return derived
