"""The embedded tiny model: its tokenizers, the files around its weights, and how it is put together and measured."""
