"""Meshes, and the rules that lay logical axes onto them."""
