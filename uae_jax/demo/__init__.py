"""The whole method on the embedded tiny model, in minutes: what `uae demo` does."""
