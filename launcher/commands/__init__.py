"""The verbs, one module per noun. Whatever is slow to import is imported by the verb that needs it."""
