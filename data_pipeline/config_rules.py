"""How configuration is read: as it stands, nothing converted, nothing unknown."""

STRICT = {"strict": True, "extra": "forbid", "use_attribute_docstrings": True}
